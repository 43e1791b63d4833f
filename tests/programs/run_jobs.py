"""Call jobs one after another, as the steps of a run: the argument is a JSON list of [module, function, arguments]."""

import importlib
import json
import sys

for module, function, arguments in json.loads(sys.argv[1]):
    getattr(importlib.import_module(module), function)(*arguments)
