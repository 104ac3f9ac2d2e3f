# SPDX-License-Identifier: Apache-2.0
"""Entry point: `pycri` and `python -m pycri`."""

from pycri.cli.main import main

if __name__ == "__main__":
    main()
