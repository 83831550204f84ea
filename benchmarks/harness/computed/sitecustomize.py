"""Python reads this first: PyTorch, once it is imported, and Triton's interpreter leave a GPU's work to the CPU."""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent))
HOOKED = ("torch", "triton.runtime.interpreter")


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
            import on_cpu

            (on_cpu.install if name == "torch" else on_cpu.install_triton)()

        spec.loader.exec_module = then_hook
        return spec


sys.meta_path.insert(0, _Hook)
if os.environ.get("TRITON_INTERPRET") != "1":  # kernels that nobody would run
    _find = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *rest: None if name == "triton" else _find(name, *rest)
