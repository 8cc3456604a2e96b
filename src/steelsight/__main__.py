"""``python -m steelsight``, as ``torchrun -m -- steelsight train`` needs it."""

from steelsight.cli import main

if __name__ == "__main__":
    main()
