"""What the world is made of: objects, scenes, their sizes and colours, and what "left of" means.

Units: the side of the picture is 1; x grows to the right, y grows downwards; (x, y) is the
object's centre (the centroid of its area). Nothing here knows a resolution.
"""

from __future__ import annotations

from dataclasses import dataclass

# Alike in size and unlike in form: the closest two, circle and square, differ in a sixth of the
# square. What differs less, as circle and diamond would, a network learns long after the colours.
SHAPES = ("circle", "square", "triangle", "cross", "ring", "plus")

# sRGB, 0..255. Any two colours that a picture may hold, backgrounds included, lie at least 0.4
# apart (Euclidean, on [0, 1]), so that a colour that is off by 0.1 is still itself.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 25, 45),
    "green": (25, 160, 60),
    "blue": (35, 65, 225),
    "yellow": (250, 232, 50),
    "purple": (130, 25, 190),
    "orange": (255, 130, 0),
    "cyan": (45, 215, 230),
    "pink": (250, 125, 200),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (245, 245, 245),
    "black": (18, 18, 18),
    "grey": (128, 128, 128),
    "brown": (115, 72, 40),
}
SIZES: dict[str, float] = {"small": 0.125, "large": 0.1875}  # radius; 4 and 6 px of 32

RELATIONS = ("left of", "right of", "above", "below")
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

# How far a shape reaches from its centre along x and along y, in radii (see draw.py).
REACH: dict[str, tuple[float, float]] = {
    "circle": (1.0, 1.0),
    "square": (1.0, 1.0),
    "triangle": (1.06, 1.22),
    "cross": (1.18, 1.18),
    "ring": (1.08, 1.08),
    "plus": (1.15, 1.15),
}
GAP = 0.04  # between the boxes that hold two objects, along x or y: 1.3 px of 32
RIM = 0.02  # between such a box and the picture's edge
# Centres are multiples of 1 / GRID, three places along each axis: what a network always meets in
# the same phase of the pixels it learns to draw far sooner. The oracle knows nothing of it.
GRID = 4

DRAWN_MARGIN = 0.2  # every pair of centres differs by this much along its dominant axis
DOMINANCE = 0.04  # and by this much more than along the other axis, so no pair is diagonal
JUDGED_MARGIN = 0.1  # a relation is true where the centres differ by this much along its axis


@dataclass(frozen=True)
class Object:
    """One object: a row of SHAPES, COLOURS and SIZES, and the centre (x, y) in [0, 1]."""

    shape: str
    colour: str
    size: str
    x: float
    y: float

    @property
    def radius(self) -> float:
        return SIZES[self.size]

    @property
    def reach(self) -> tuple[float, float]:
        """Half the width and height of the box that holds it."""
        x, y = REACH[self.shape]
        return x * self.radius, y * self.radius

    @property
    def kind(self) -> tuple[str, str]:
        """(colour, shape): what a caption must name; no two objects of a scene share it."""
        return self.colour, self.shape


@dataclass(frozen=True)
class Scene:
    """One to three objects, none overlapping, all inside the picture, on a background."""

    objects: tuple[Object, ...]
    background: str


def relation(dx: float, dy: float) -> str:
    """The relation in which A stands to B along the dominant axis, for (dx, dy) = A - B."""
    if abs(dx) >= abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def holds(name: str, dx: float, dy: float, margin: float = JUDGED_MARGIN) -> bool:
    """Whether A stands in relation `name` to B by `margin`, for (dx, dy) = A - B.

    Two relations can hold at once: A may be left of B and also above it.
    """
    along = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[name]
    return along >= margin
