"""A service behind the server, through upstream's own Python connector.

It writes one line of JSON to stdout for each message it receives, and takes
requests as lines of JSON on stdin, answering each in turn with one line. It
ends when stdin does.

    {"do": "send", "client": ID, "type": T, "text": TEXT}
        -> {"id": ID, "called_ns": N}   the time just before the call
    {"do": "statuses", "ids": [ID]}
        -> [{"known": B, "done": B, "failure": TEXT or null}]
    {"do": "clients"}
        -> [{"id": ID, "labels": ["service:label"], "blacklisted": B}]
    {"do": "addresses", "client": ID}
        -> ["HOST:PORT"]   of all contacts
    {"do": "pending", "client": ID}
        -> N   messages without a result
    {"do": "broadcast", "text": TEXT, "labels": ["service:label"], "limit": N}
        -> null
"""

import argparse
import json
import os
import sys
import threading
import time

from fleetspeak.server_connector import connector
from fleetspeak.src.common.proto.fleetspeak import common_pb2
from fleetspeak.src.server.proto.fleetspeak_server import admin_pb2
from fleetspeak.src.server.proto.fleetspeak_server import admin_pb2_grpc
from google.protobuf import wrappers_pb2
import grpc

CALL_SECONDS = 30


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--admin", required=True)
    arguments = parser.parse_args()

    service = Service(arguments.name, arguments.listen, arguments.admin)
    service.listen()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"answer": getattr(service, request.pop("do"))(**request)}
        except grpc.RpcError as error:
            answer = {"error": str(error)}
        write_line(answer)


class Service:

    def __init__(self, name, listen, admin):
        self.name = name
        self.connection = connector.InsecureGRPCServiceClient(
            name,
            fleetspeak_message_listen_address=listen,
            fleetspeak_server=admin,
            # A second process on the same port shall fail, not share it.
            options={"grpc.so_reuseport": 0},
        )
        # For the calls that the connector does not offer.
        self.admin = admin_pb2_grpc.AdminStub(grpc.insecure_channel(admin))

    def listen(self):
        self.connection.Listen(receive)
        write_line({"ready": True})

    def send(self, client, type, text):
        # The connector tries again under the same id when a call fails.
        message = common_pb2.Message(message_id=os.urandom(32), message_type=type)
        message.destination.client_id = bytes.fromhex(client)
        message.destination.service_name = self.name
        message.data.Pack(wrappers_pb2.StringValue(value=text))
        called_ns = time.monotonic_ns()
        self.connection.outgoing.InsertMessage(message)
        return {"id": message.message_id.hex(), "called_ns": called_ns}

    def statuses(self, ids):
        return [self.status(bytes.fromhex(id)) for id in ids]

    def status(self, id):
        request = admin_pb2.GetMessageStatusRequest(message_id=id)
        status = self.admin.GetMessageStatus(request, timeout=CALL_SECONDS)
        return {
            "known": status.HasField("creation_time"),
            "done": status.result.HasField("processed_time"),
            "failure": status.result.failed_reason if status.result.failed else None,
        }

    def clients(self):
        clients = self.connection.outgoing.ListClients(admin_pb2.ListClientsRequest()).clients
        return [
            {
                "id": client.client_id.hex(),
                "labels": [f"{l.service_name}:{l.label}" for l in client.labels],
                "blacklisted": client.blacklisted,
            }
            for client in clients
        ]

    def addresses(self, client):
        request = admin_pb2.ListClientContactsRequest(client_id=bytes.fromhex(client))
        contacts = self.admin.ListClientContacts(request, timeout=CALL_SECONDS).contacts
        return [contact.observed_address for contact in contacts]

    def pending(self, client):
        request = admin_pb2.GetPendingMessageCountRequest(client_ids=[bytes.fromhex(client)])
        return self.admin.GetPendingMessageCount(request, timeout=CALL_SECONDS).count

    def broadcast(self, text, labels, limit):
        request = admin_pb2.CreateBroadcastRequest(limit=limit)
        broadcast = request.broadcast
        broadcast.source.service_name = self.name
        broadcast.message_type = "Text"
        for label in labels:
            service, _, name = label.partition(":")
            broadcast.required_labels.add(service_name=service, label=name)
        broadcast.expiration_time.FromSeconds(int(time.time()) + 600)
        broadcast.data.Pack(wrappers_pb2.StringValue(value=text))
        self.admin.CreateBroadcast(request, timeout=CALL_SECONDS)


def receive(message, _context):
    text = wrappers_pb2.StringValue()
    known = message.data.Unpack(text)
    write_line({
        "received": {
            "client": message.source.client_id.hex(),
            "service": message.source.service_name,
            "type": message.message_type,
            "text": text.value if known else None,
        }
    })


# Messages arrive on threads of the connector.
_stdout = threading.Lock()


def write_line(value):
    with _stdout:
        sys.stdout.write(json.dumps(value) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
