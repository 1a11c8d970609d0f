"""A daemon service on the agent that answers what it is sent.

Every message goes back, with its data, to the service of the same name on the
server, as type `Echo`. A message of type `Burst` with the text `<word> <n>` is
answered with n messages `<word>-0`, `<word>-1` and so on instead.

Each message is first noted, as a line of JSON with the time of its arrival, in
the file named by the only argument.
"""

import json
import struct
import sys
import time

from fleetspeak.client_connector import connector
from fleetspeak.src.common.proto.fleetspeak import common_pb2
from google.protobuf import wrappers_pb2


def text_of(data):
    text = wrappers_pb2.StringValue()
    return text.value if data.Unpack(text) else None


def main():
    with open(sys.argv[1], "a", encoding="utf-8") as journal:
        agent = connector.FleetspeakConnection(version="echo")
        while True:
            try:
                message, _ = agent.Recv()
            except struct.error:
                return  # The agent is gone.
            arrived_ns = time.monotonic_ns()
            text = text_of(message.data)
            note = {"arrived_ns": arrived_ns, "type": message.message_type, "text": text}
            journal.write(json.dumps(note) + "\n")
            journal.flush()

            reply = common_pb2.Message(message_type="Echo")
            reply.destination.service_name = message.destination.service_name
            if message.message_type == "Burst":
                word, count = text.split()
                for number in range(int(count)):
                    reply.data.Pack(wrappers_pb2.StringValue(value=f"{word}-{number}"))
                    agent.Send(reply)
            else:
                reply.data.CopyFrom(message.data)
                agent.Send(reply)


if __name__ == "__main__":
    main()
