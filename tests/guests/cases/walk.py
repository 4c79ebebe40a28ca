"""walk.py STOCK HOLDFAST DIFFERS SUITE: what verbs-walk said of two providers must be the same, line by line, but for the cases
that DIFFERS names for the suite."""

import re
import sys


def cases(path):
    found = {}
    with open(path) as lines:
        for line in lines:
            if line.startswith("CASE "):
                name, _, rest = line[5:].rstrip("\n").partition(": ")
                found.setdefault(name, []).append(rest)
    return found


def main(stock_path, holdfast_path, differs_path, suite):
    stock, holdfast = cases(stock_path), cases(holdfast_path)
    with open(differs_path) as lines:
        entries = [line.split(" :: ") for line in lines if line.strip() and not line.startswith("#")]
    named = [re.compile(name) for where, name, _ in entries if where in ("any", suite)]
    wrong = named_too = 0
    for name in list(stock) + [name for name in holdfast if name not in stock]:
        if stock.get(name) == holdfast.get(name):
            continue
        if any(pattern.fullmatch(name) for pattern in named):
            named_too += 1
            continue
        wrong += 1
        print(f"{name}: stock {stock.get(name)}, holdfast {holdfast.get(name)}")
    print(f"{len(holdfast)} cases, {named_too} differ as named, {wrong} otherwise")
    # Two empty runs are no agreement.
    return 1 if wrong or len(stock) < 1000 else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
