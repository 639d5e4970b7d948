"""Names for containers whose users gave none: an adjective and a noun, as Docker has them."""

from __future__ import annotations

from collections.abc import Callable
from zlib import crc32

_ADJECTIVES_TEXT = """
able agile amber ample azure bold brave brisk bright calm clear clever cosy crisp curious
daring deft eager early easy fair fast fine fleet fond frank fresh gentle glad golden
grand happy hardy honest humble jolly keen kind lively lucid lucky mellow merry mighty
modest neat nimble noble patient plain polite proud quick quiet rapid ready serene sharp
silent smart steady sunny swift tidy vivid warm wise witty
"""
_NOUNS_TEXT = """
acorn alder anchor apple aspen badger beacon beaver birch bison brook candle canyon cedar
cliff clover comet coral crane delta dolphin falcon fern finch forest fox garden glacier
harbor hawk hazel heron hill island ivy jaguar juniper kestrel lagoon lantern larch lark
maple marten meadow moose oak orchid otter owl panda pebble pine planet puffin quartz
raven reef ridge river robin rowan salmon sparrow spruce summit swan thistle tiger tulip
valley walnut willow wren
"""
_ADJECTIVES, _NOUNS = _ADJECTIVES_TEXT.split(), _NOUNS_TEXT.split()


def container_name(id: str, taken: Callable[[str], bool]) -> str:
    """A name that nobody has, made from the container's id; with a number once names run short."""
    count = len(_ADJECTIVES) * len(_NOUNS)
    first = crc32(id.encode())
    for turn in range(16):
        number = (first + turn * 7919) % count
        name = f"{_ADJECTIVES[number // len(_NOUNS)]}_{_NOUNS[number % len(_NOUNS)]}"
        if not taken(name):
            return name
    return f"{name}_{first:08x}"
