"""python -m hidiff."""

from hidiff.cli import main

raise SystemExit(main())
