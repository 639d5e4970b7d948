# SPDX-License-Identifier: Apache-2.0
"""CNI lists: what is valid, and errors that name the key."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.model.formats.conflist import (
    ConflistError,
    bandwidth,
    check_asked,
    filled_conflist,
    parse_conflist,
    wants_slices,
)
from orchestrator.model.specs import NetworkAttachment, PortSpec, PublishMode

LIST: dict[str, Any] = {
    "cniVersion": "1.0.0",
    "name": "lan",
    "plugins": [
        {"type": "bridge", "ipam": {"type": "host-local"}, "capabilities": {"ips": True}},
        {"type": "portmap", "capabilities": {"portMappings": True, "mac": False}},
    ],
}


def listed(**changes: Any) -> str:
    return json.dumps({key: each for key, each in (LIST | changes).items() if each is not ...})


def plugin(**changes: Any) -> str:
    return listed(plugins=[{"type": "bridge"}, {"type": "portmap"} | changes])


def test_a_list_is_read() -> None:
    found = parse_conflist(listed(disableCheck="true"))
    assert found.name == "lan"
    assert found.versions == ("1.0.0",)
    assert found.programs == ("bridge", "host-local", "portmap")
    assert found.has("portMappings")
    assert not found.has("mac")
    assert (found.checks, found.collects, found.local) == (False, True, True)
    both = parse_conflist(listed(cniVersion="1.0.0", cniVersions=["0.4.0", "1.1.0", "9.0.0"]))
    assert both.versions == ("1.1.0", "1.0.0", "0.4.0")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"name": "lan",\n "plugins" []}', "line 2, column 12: expecting ':' delimiter"),
        ("[]", "it is no JSON object; begin it with {"),
        ('{"type": "bridge"}', "type: this is the configuration of one plugin, no list; put it"),
        (listed(name=...), 'name: it is missing; write "name": "…"'),
        (listed(name="-lan"), "name: '-lan' begins with a letter or digit"),
        (listed(cniVersion=...), "cniVersion: it is missing; known are 1.1.0, 1.0.0"),
        (listed(cniVersion="1.0"), "cniVersion: '1.0' is no version; known are 1.1.0"),
        (listed(cniVersion="2.0.0"), "cniVersion: 2.0.0 is not supported; known are 1.1.0"),
        (listed(cniVersions="1.0.0"), "cniVersions: it is no list of versions"),
        (listed(plugin=[]), "plugin: there is no such key; did you mean 'plugins'?"),
        (listed(plugins=...), "plugins: there is none; write"),
        (listed(plugins=[]), "plugins: there is none; write"),
        (listed(plugins=["bridge"]), "plugins[0]: it is no JSON object"),
        (listed(disableGC="maybe"), "disableGC: 'maybe' is not a boolean (true or false)"),
        (
            plugin(type=""),
            "plugins[1].type: it is missing; it is the plugin's name, such as bridge",
        ),
        (
            plugin(type="/bin/sh"),
            "plugins[1].type: '/bin/sh' is no plugin's name; write it without",
        ),
        (plugin(type=7), "plugins[1].type: it is missing"),
        (plugin(prevResult={}), "plugins[1].prevResult: the runtime sets this; leave it out"),
        (plugin(runtimeConfig={}), "plugins[1].runtimeConfig: the runtime sets this; leave it out"),
        (plugin(capabilities=[]), "plugins[1].capabilities: it is no JSON object such as"),
        (
            plugin(capabilities={"ips": 1}),
            "plugins[1].capabilities.ips: 1 is not a boolean (true or false)",
        ),
        (plugin(ipam="host-local"), "plugins[1].ipam: it is no JSON object"),
        (plugin(ipam={"subnet": "10.0.0.0/8"}), "plugins[1].ipam.type: it is missing"),
        (plugin(ipam={"type": "../x"}), "plugins[1].ipam.type: '../x' is no plugin's name"),
        (plugin(master="{{.Node.Name}}"), "{{.Node.Name}} is not known; known are {{.Node.ID}}"),
        (plugin(master="{{.Task.Slot}}"), "{{.Task.Slot}} is not known; known are {{.Node.ID}}"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(text: str, words: str) -> None:
    with pytest.raises(ConflistError) as caught:
        parse_conflist(text)
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["type", "ipam", "x"]), inner),
    max_leaves=10,
)


@given(st.fixed_dictionaries({}, optional={key: JSON for key in (*LIST, "cniVersions")}) | JSON)
def test_any_input_is_parsed_or_refused(raw: Any) -> None:
    with suppress(ConflistError):
        found = parse_conflist(json.dumps(raw))
        assert found.programs
        assert found.versions


def test_node_specific_templates_are_filled() -> None:
    text = plugin(master="{{.Node.Labels.nic}}", args={"host": ["a-{{ .Node.Hostname }}"]})
    parse_conflist(text)
    assert not wants_slices(text)
    assert wants_slices(plugin(ipam={"type": "host-local", "subnet": "{{.Node.Subnet}}"}))
    labels = {"nic": 'e"th1'}
    filled = filled_conflist(
        text, lambda field, label: labels[label] if label else {"Node.Hostname": "node1"}[field]
    )
    found = json.loads(filled)["plugins"][1]
    assert (found["master"], found["args"]) == ('e"th1', {"host": ["a-node1"]})


def test_options_without_a_plugin_that_takes_them_are_refused() -> None:
    chain = parse_conflist(listed())
    port = PortSpec(8080, 80, mode=PublishMode.HOST)
    check_asked(chain, "lan", NetworkAttachment("lan", ip=("10.0.0.9",)), (port,))
    with pytest.raises(ValueError, match="network 'lan' cannot fix a hardware address: no plugin"):
        check_asked(chain, "lan", NetworkAttachment("lan", mac="02:00:00:00:00:01"), ())
    with pytest.raises(ValueError, match="has the capability 'bandwidth'"):
        check_asked(chain, "lan", NetworkAttachment("lan", options={"egress-rate": "1m"}), ())
    bare = parse_conflist(listed(plugins=[{"type": "ptp"}]))
    with pytest.raises(ValueError, match=r"cannot publish a port: .* 'portMappings'"):
        check_asked(bare, "lan", NetworkAttachment("lan"), (port,))


def test_rates() -> None:
    assert bandwidth({}) == {}
    assert bandwidth({"ingress-rate": "10m", "egress-rate": "1g", "egress-burst": "1m"}) == {
        "ingressRate": 10_000_000,
        "ingressBurst": 1_000_000,
        "egressRate": 1_000_000_000,
        "egressBurst": 1_000_000,
    }
    with pytest.raises(ValueError, match=r"'egres-rate' is unknown .*; did you mean 'egress-rate'"):
        bandwidth({"egres-rate": "1m"})
    with pytest.raises(ValueError, match="ingress-burst says nothing without ingress-rate"):
        bandwidth({"ingress-burst": "1m"})
    with pytest.raises(ValueError, match="'fast' is not a number of bits"):
        bandwidth({"ingress-rate": "fast"})
