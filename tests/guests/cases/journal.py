"""journal.py STOCK HOLDFAST DIFFERS SUITE CASE: what two providers told virtual ConnectX devices (`vhca journal ... queues after
MARK`) must be the same, queue by queue and line by line, but for what DIFFERS names."""

import re
import sys


def streams(path):
    found = {}
    lines = None
    with open(path) as text:
        for line in text:
            line = line.rstrip("\n")
            if line.startswith("== "):
                lines = found.setdefault(line[3:], [])
            else:
                lines.append(line)
    return found


class Differs:
    """Lines `SUITE :: CASE :: QUEUE :: STOCK => HOLDFAST :: REASON`: where stock's line has the expression STOCK, holdfast's
    may have HOLDFAST in its place. With `*` for HOLDFAST both may have anything that the expression fits."""

    def __init__(self, path, suite, case):
        self.rules = []
        with open(path) as lines:
            for line in lines:
                if not line.strip() or line.startswith("#"):
                    continue
                where, name, queue, change, _ = line.split(" :: ")
                stock, holdfast = change.split(" => ")
                if where in ("any", suite) and re.fullmatch(name, case):
                    self.rules.append((re.compile(queue), re.compile(stock), holdfast))

    def allow(self, queue, stock, holdfast):
        rules = [(what, by) for where, what, by in self.rules if where.fullmatch(queue)]
        for what, by in rules:
            if by == "*":
                stock, holdfast = what.sub("*", stock), what.sub("*", holdfast)
        return stock == holdfast or any(
            by != "*" and what.sub(by, stock) == holdfast for what, by in rules
        )


def main(stock_path, holdfast_path, differs_path, suite, case):
    stock, holdfast = streams(stock_path), streams(holdfast_path)
    differs = Differs(differs_path, suite, case)
    wrong = named = total = 0
    for queue in list(stock) + [queue for queue in holdfast if queue not in stock]:
        left, right = stock.get(queue, []), holdfast.get(queue, [])
        total += len(left)
        for at in range(max(len(left), len(right))):
            ours = right[at] if at < len(right) else "nothing"
            theirs = left[at] if at < len(left) else "nothing"
            if ours == theirs:
                continue
            if differs.allow(queue, theirs, ours):
                named += 1
                continue
            wrong += 1
            if wrong <= 20:
                print(f"{queue}, line {at + 1}:\n  stock:    {theirs}\n  holdfast: {ours}")
    print(f"{total} lines of {len(stock)} texts, {named} differ as named, {wrong} otherwise")
    # Two empty journals are no agreement.
    return 1 if wrong or not any("doorbells" in queue for queue in stock) else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
