"""Measurements of the platform, each beside what it has to be measured by.

A package by this file: Opacus installs a package of this name, which a folder without one would give way to.
"""
