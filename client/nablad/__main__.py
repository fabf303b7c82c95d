"""`python -m nablad`: the command line."""

from nablad.command_line import main

raise SystemExit(main())
