"""`python -m concilia`."""

from concilia.app import main

if __name__ == "__main__":
    main()
