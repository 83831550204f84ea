"""Python reads this first where a GPU is stood in for: PyTorch, once it is imported, leaves its work to the CPU or to nobody."""

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent))
COMPUTED = os.environ["STAND_IN_COPIES"] == "1"
HOOKED = {"torch": "install"}  # module: what follows its import
if COMPUTED:
    HOOKED["triton.runtime.interpreter"] = "install_triton"


class _Hook:
    @staticmethod
    def find_spec(name: str, *_: Any) -> Any:
        if name not in HOOKED:
            return None
        sys.meta_path.remove(_Hook)
        try:
            spec: Any = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, _Hook)
        run = spec.loader.exec_module

        def then_hook(module: Any) -> None:
            run(module)
            instead = importlib.import_module("on_cpu" if COMPUTED else "uncomputed")
            getattr(instead, HOOKED[name])()

        spec.loader.exec_module = then_hook
        return spec


sys.meta_path.insert(0, _Hook)
UNRUN = COMPUTED and os.environ.get("TRITON_INTERPRET") != "1"  # its kernels, by anybody
if UNRUN or os.environ.get("STAND_IN_TRITON") == "0":
    _find = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *rest: None if name == "triton" else _find(name, *rest)
