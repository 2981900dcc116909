"""Import every module of an installed geobind and of the plugins that it brings."""

import importlib
import pkgutil
import sys
from importlib.metadata import files

tops = {
    str(path).split("/")[0].removesuffix(".py") for path in files("geobind") or () if path.suffix == ".py"
}
tops = {name for name in tops if name.isidentifier()}
names = set(tops)
for top in tops:
    package = importlib.import_module(top)
    if hasattr(package, "__path__"):
        names |= {module.name for module in pkgutil.walk_packages(package.__path__, f"{top}.")}
names = {name for name in names if not name.endswith("__main__")}
faults = []
for name in sorted(names):
    try:
        importlib.import_module(name)
    except Exception as error:
        faults.append(f"{name}: {type(error).__name__}: {error}")
print(f"{len(names) - len(faults)} of {len(names)} modules import")
if faults or len(names) < 100:  # fewer: not the installed package was looked at
    sys.exit("\n".join([*faults, f"{len(names)} modules looked at"]))
