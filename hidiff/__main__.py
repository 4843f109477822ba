"""python -m hidiff."""

from hidiff.cli.arguments import main

raise SystemExit(main())
