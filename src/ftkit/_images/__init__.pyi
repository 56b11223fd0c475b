from .findings import DuplicateGroup as DuplicateGroup
from .findings import Finding as Finding
from .quarantine import Quarantine as Quarantine
from .quarantine import restore as restore
from .repair import Repair as Repair
from .report import ScanReport as ScanReport
from .scan import scan_images as scan_images
