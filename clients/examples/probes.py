"""See what the model knows of the world while it writes: what probes read in the state that chose each token."""

from ..client import Client

PROBLEM = """\
Question: Karel stands on ba facing south. Karel turns left on Monday. Karel moves on Tuesday. Which way does Karel face now?
Answer:"""


def main() -> None:
    """Print what each probe of the server makes of each token of an answer."""
    with Client() as client:
        model = next((model for model in client.models() if model.capabilities.probes), None)
        if model is None:
            print("this server has no probes; --probe NAME=FOLDER loads one")
            return
        names = [probe.name for probe in model.capabilities.probes]
        for probe in model.capabilities.probes:
            print(f"{probe.name} tells {', '.join(probe.classes)} apart")
        reply = client.complete(PROBLEM, model=model.id, temperature=0, probes=names)
    for told in reply.probes:
        for name, readout in told.readouts.items():
            said = f"{readout.class_} ({readout.probability:.0%})" if readout else "nothing to say"
            print(f"at {told.token!r}, {name}: {said}")


if __name__ == "__main__":
    main()
