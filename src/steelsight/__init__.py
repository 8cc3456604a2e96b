"""Find and outline manufacturing defects on steel from camera images.

Import from the module that defines a thing, for example
``from steelsight.engine import Inspector``; this package root stays empty on purpose, but for what
must happen before any other import.
"""

import os

__version__ = "0.1.0"

# From 1.29 on ONNX Runtime writes an id of the machine into the home folder and sends events to its
# maker, unless this is set before it is loaded. Plants have not agreed to that.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
