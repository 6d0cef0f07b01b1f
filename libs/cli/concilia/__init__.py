"""The `concilia` command: jobs, nodes, predictions, verification, and the stack on one machine."""
