"""What crosses a wire between services, nodes and people: one module an owner.

Models are strict about what they accept and frozen once made; unknown members are refused, so that a misspelt field
is an error and not a silent default.
"""
