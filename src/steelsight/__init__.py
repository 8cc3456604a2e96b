"""Find and outline manufacturing defects on steel from camera images.

Import from the module that defines a thing, for example
``from steelsight.engine import Inspector``; this package root stays empty on purpose.
"""

__version__ = "0.1.0"
