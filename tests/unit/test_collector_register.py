# SPDX-License-Identifier: EUPL-1.2
"""Places are given once, the number decides before the name, and networks that meet are one."""

from hypothesis import given
from hypothesis import strategies as st

from collector.config import Config, OperatorEntry
from collector.register import NO_NETWORK, Networks, Register
from probe.wire.records import Origin

CONFIG = Config(
    operators=(
        OperatorEntry(id="kpn", brand="KPN", asns=(1136, 8737), country="NL"),
        OperatorEntry(id="orange-be", asns=(12392,), country="BE", timezone="Europe/Paris"),
    )
)


def origin(asn, name=None, country="NL"):
    return Origin(asn=asn, operator=name, country=country)


def test_the_configured_come_first_and_the_number_decides():
    register = Register(CONFIG, [])
    assert [(o.id, o.place) for o in register.changed] == [("kpn", 1), ("orange-be", 2)]
    assert register.resolve(origin(8737, "Somebody Else")).id == "kpn"
    assert register.resolve(origin(12392)).timezone == "Europe/Paris"


def test_who_is_met_is_appended_in_that_order():
    register = Register(CONFIG, [])
    met = [register.resolve(o) for o in (origin(64500, "New"), origin(64501), origin(None, "Named"), origin(None))]
    assert [(o.id, o.place) for o in met] == [("New", 3), ("AS64501", 4), ("Named", 5), ("unknown", 6)]
    assert [register.resolve(o).place for o in (origin(64500), origin(64501, "x"), origin(None))] == [3, 4, 6]
    assert not any(o.configured for o in met)


def test_one_name_with_two_numbers_is_one_operator_in_one_country_and_two_in_two():
    register = Register(Config(), [])
    first = register.resolve(origin(1, "Vodafone", "NL"))
    assert register.resolve(origin(2, "Vodafone", "NL")).asns == (1, 2)
    other = register.resolve(origin(3, "Vodafone", "DE"))
    assert (other.id, other.place) == ("Vodafone (DE)", first.place + 1)
    assert register.resolve(origin(4, "Vodafone", "DE")).id == "Vodafone (DE)"


def test_a_place_outlives_every_change_of_the_configuration():
    before = Register(Config(), [])
    before.resolve(origin(64500, "New"))
    before.resolve(origin(1136, "KPN BV"))
    after = Register(CONFIG, before.changed)
    places = {o.id: o.place for o in (after.at(n) for n in range(1, 5))}
    assert places == {"New": 1, "KPN BV": 2, "kpn": 3, "orange-be": 4}
    assert after.at(2).asns == ()
    assert after.resolve(origin(1136)).id == "kpn"
    # Nothing more to write the next time.
    stored = [after.at(n) for n in range(1, 5)]
    assert Register(CONFIG, stored).changed == []


def test_time_zones_are_told_or_assumed_and_it_is_known_which():
    register = Register(Config(timezones=(("NL", "America/Aruba"),)), [])
    dutch, french, far = (register.resolve(origin(n, str(n), c)) for n, c in ((1, "NL"), (2, "FR"), (3, "ZZ")))
    assert [o.timezone for o in (dutch, french, far)] == ["America/Aruba", "Europe/Paris", "UTC"]
    assert [register.zone_known(o) for o in (dutch, french, far)] == [True, True, False]


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=40), st.randoms(use_true_random=False))
def test_networks_are_the_connected_parts_whatever_the_order(seen, rng):
    """Against plain search over probes and hashes."""
    pairs = [(f"{hash_ + 1:032x}", f"probe{probe:02}") for hash_, probe in seen]
    networks = Networks([])
    for pair in pairs:
        networks.see(*pair)
    for probe in {probe for _, probe in pairs}:
        reached, frontier = set(), {probe}
        while frontier:
            reached |= frontier
            hashes = {h for h, p in pairs if p in frontier}
            frontier = {p for h, p in pairs if h in hashes} - reached
        assert networks.component(probe) == min(reached)
        assert networks.members(min(reached)) == reached
    shuffled = list(pairs)
    rng.shuffle(shuffled)
    again = Networks(shuffled)
    assert {p: again.component(p) for _, p in pairs} == {p: networks.component(p) for _, p in pairs}


def test_what_changed_is_told_once():
    networks = Networks([])
    assert networks.see("a" * 32, "p2") == ("p2", ())
    assert networks.see("a" * 32, "p2") is None
    assert networks.see("b" * 32, "p1") == ("p1", ())
    assert networks.see("a" * 32, "p3") == ("p2", ())
    assert networks.see("b" * 32, "p3") == ("p1", ("p2",))
    assert networks.see(NO_NETWORK, "p9") is None
    assert networks.component("p9") is None
