"""``python -m ftkit``: the same commands as ``ftkit``, where scripts are not on the path."""

import sys

from ftkit._cli import main

sys.exit(main())
