"""See what the model knows of the world while it writes: what probes read in the state that chose each token."""

from ..client import Client

PROBLEM = """\
Question: Karel stands on ba facing south. Karel turns left on Monday. Karel moves on Tuesday. Which way does Karel face now?
Answer:"""


def main() -> None:
    """Print what each probe of the server makes of each token of an answer."""
    with Client() as client:
        known = client.models()[0].capabilities.probes
        if not known:
            print("this server has no probes; --probe NAME=FOLDER loads one")
            return
        for probe in known:
            print(f"{probe.name} tells {', '.join(probe.classes)} apart")
        reply = client.complete(PROBLEM, temperature=0, thought_depth=4, probes=[probe.name for probe in known])
    for told in reply.probes:
        for name, readout in told.readouts.items():
            said = f"{readout.class_} ({readout.probability:.0%})" if readout else "nothing to say"
            print(f"at {told.token!r}, {name}: {said}")


if __name__ == "__main__":
    main()
