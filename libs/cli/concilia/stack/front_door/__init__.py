"""The front door of a stack on one machine: one origin for the pages and the four services.

It keeps the rules of the deployment's nginx (deploy/frontend); a test compares the two.
"""
