"""A graph as a GPU has it, but for time: capturing runs nothing, replaying runs everything."""


class Replayed:
    """Stands for ``graph_room.CudaGraph``; ``made`` are those that were captured, in that order."""

    made: list["Replayed"] = []

    def capture(self, work, beside=None) -> None:
        self.work, self.replays, self.beside = work, 0, beside
        Replayed.made.append(self)

    def replay(self) -> None:
        self.work()
        self.replays += 1

    @staticmethod
    def lack(share: float, beside=None) -> str:
        return ""
