"""Write the table of torchvision's weights anew, from the version that is installed."""

import json

from featcache.extraction import torchvision_models as torchvision
from featcache.extraction.registry import BACKBONES

if __name__ == "__main__":
    lines = [f'"{name}": {json.dumps(torchvision.read_library(name))}' for name in BACKBONES]
    head = f'{{"version": "{torchvision._installed()}", "models": {{\n'
    torchvision.TABLE.write_text(head + ",\n".join(lines) + "\n}}\n")
