"""`quietserve serve`: reads its settings, and only then what it takes to serve."""

import sys
from collections.abc import Sequence

from .settings import Settings, SettingsError, complain


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal ends it; the exit code is 2 where something that was told cannot be."""
    try:
        settings = Settings.from_args(sys.argv[1:] if argv is None else argv)
        keys = settings.read_keys()
    except SettingsError as error:
        complain("serve", error)
        return 2
    from .process import serve  # torch and transformers take seconds, and whoever asks for help need not wait for them

    return serve(settings, keys)


if __name__ == "__main__":
    sys.exit(main())
