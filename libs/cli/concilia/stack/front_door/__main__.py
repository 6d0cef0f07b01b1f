"""`python -m concilia.stack.front_door`."""

from concilia.stack.front_door.main import main

if __name__ == "__main__":
    main()
