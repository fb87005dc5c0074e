"""`python -m gossamer.engine.native` builds the native engine ahead of its first use, and says what it runs on here."""

from gossamer.core.errors import DeviceError
from gossamer.engine.native.library import isas

try:
    print(f"native engine: {', '.join(isas())}")
except DeviceError as error:
    print(f"native engine: none, models run in torch: {error}")
