"""Find and outline manufacturing defects on steel from camera images.

Import from the module that defines a thing, for example
``from steelsight.engine import Inspector``; this package root stays empty on purpose, but for what
must happen before any other import.
"""

import os
import sys
from types import ModuleType
from typing import cast

__version__ = "0.1.0"

# Both engines would write an id of the machine into the home folder and tell their makers of its
# use. Plants have not agreed to that. ONNX Runtime (from 1.29 on) reads this when it is loaded;
# OpenVINO does without the package that it cannot import.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
sys.modules.setdefault("openvino_telemetry", cast("ModuleType", None))
