"""Karel written to be read: one world, one operation at a time, a dictionary for what lies where."""

from dataclasses import dataclass, field

Cell = tuple[int, int]  # row from the north, column from the west

AHEAD = {"N": (-1, 0), "E": (0, 1), "S": (1, 0), "W": (0, -1)}
LEFT_OF = {"N": "W", "W": "S", "S": "E", "E": "N"}
RIGHT_OF = {"N": "E", "E": "S", "S": "W", "W": "N"}


@dataclass
class Karel:
    size: int
    robot: Cell
    heading: str
    walls: set[Cell] = field(default_factory=set)
    markers: dict[Cell, int] = field(default_factory=dict)

    def do(self, op: str) -> None:
        if op == "move":
            if not self.is_blocked():
                self.robot = self.ahead()
        elif op == "left":
            self.heading = LEFT_OF[self.heading]
        elif op == "right":
            self.heading = RIGHT_OF[self.heading]
        elif op == "pick":
            if self.markers.get(self.robot, 0) > 0:
                self.markers[self.robot] -= 1
        elif op == "put":
            if self.markers.get(self.robot, 0) < 9:
                self.markers[self.robot] = self.markers.get(self.robot, 0) + 1
        else:
            raise ValueError(op)

    def ahead(self) -> Cell:
        row, column = AHEAD[self.heading]
        return self.robot[0] + row, self.robot[1] + column

    def is_blocked(self) -> bool:
        row, column = self.ahead()
        return not (0 <= row < self.size and 0 <= column < self.size) or (row, column) in self.walls
