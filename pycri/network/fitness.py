# SPDX-License-Identifier: Apache-2.0
"""Would the built-in network start on this host? Asked beside the daemon, by `pycri check`."""

import sqlite3
from pathlib import Path

from pycri.config import Settings
from pycri.errors import PycriError
from pycri.model.ranges import gateway_of, parse_ranges
from pycri.network.bridge import GATEWAYS_KEY, POD_CIDR_KEY, decode_gateways, interface_prefix
from pycri.network.host import check_host
from pycri.network.netlink import Netlink
from pycri.network.nftables import run_nft
from pycri.network.rules import render_tables
from pycri.state.database import read_database
from pycri.state.records import load_meta


def find_fault(settings: Settings) -> str:
    """Return what would keep it from being started, or "". Changes nothing; needs root."""

    def read(connection: sqlite3.Connection) -> tuple[str | None, str | None]:
        return load_meta(connection, POD_CIDR_KEY), load_meta(connection, GATEWAYS_KEY)

    network = settings.network
    try:
        saved = read_database(Path(settings.database_path), read)
        cidr, gateways = saved or (None, None)
        ranges = parse_ranges(cidr or network.range)
        ours = decode_gateways(gateways) | {gateway_of(r) for r in ranges}
        with Netlink.open_route() as netlink:
            check_host(netlink, network, ranges, ours)
        prefix = interface_prefix(network.bridge)
        run_nft(render_tables(network.table, network.bridge, prefix, ranges, []), only_check=True)
    except (PycriError, OSError) as error:
        return str(error)
    return ""
