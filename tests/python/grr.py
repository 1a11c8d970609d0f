"""What GRR does with a server: the files it writes, and the calls it makes.

    grr.py configure DIRECTORY --agents ADDRESS --admin ADDRESS --service ADDRESS
    grr.py call CLIENT_ID --label LABEL --admin ADDRESS --service ADDRESS

Ends with an error if an answer is not the one that GRR expects.
"""

import argparse
import os
import pathlib
import queue
import time

from fleetspeak.server_connector import connector
from fleetspeak.src.common.proto.fleetspeak import common_pb2
from fleetspeak.src.common.proto.fleetspeak import system_pb2
from fleetspeak.src.config.proto.fleetspeak_config import config_pb2
from fleetspeak.src.server.grpcservice.proto.fleetspeak_grpcservice import grpcservice_pb2
from fleetspeak.src.server.proto.fleetspeak_server import admin_pb2
from fleetspeak.src.server.proto.fleetspeak_server import admin_pb2_grpc
from fleetspeak.src.server.proto.fleetspeak_server import server_pb2
from fleetspeak.src.server.proto.fleetspeak_server import services_pb2
from google.protobuf import text_format
from google.protobuf import wrappers_pb2
import grpc

NAME = "GRR"
SECONDS = 30


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["configure", "call"])
    parser.add_argument("subject")
    parser.add_argument("--agents")
    parser.add_argument("--label")
    parser.add_argument("--admin", required=True)
    parser.add_argument("--service", required=True)
    arguments = parser.parse_args()
    if arguments.action == "configure":
        configure(pathlib.Path(arguments.subject), arguments)
    else:
        call(bytes.fromhex(arguments.subject), arguments)


def configure(directory, arguments):
    config = config_pb2.Config(configuration_name="GRR")
    components = config.components_config
    components.mysql_data_source_name = "grr:secret@tcp(127.0.0.1:1)/fleetspeak"
    components.https_config.listen_address = arguments.agents
    components.admin_config.listen_address = arguments.admin
    config.public_host_port.append(arguments.agents)
    for field, name in [
        ("trusted_cert_file", "trusted_cert.pem"),
        ("trusted_cert_key_file", "trusted_cert_key.pem"),
        ("server_cert_file", "server_cert.pem"),
        ("server_cert_key_file", "server_cert_key.pem"),
        ("server_component_configuration_file", "server.components.config"),
        ("linux_client_configuration_file", "linux_client.config"),
    ]:
        setattr(config, field, str(directory / name))
    write(directory / "configurator.config", config)

    services = server_pb2.ServerConfig()
    service = services.services.add(name=NAME, factory="GRPC")
    service.config.Pack(
        grpcservice_pb2.Config(target=arguments.service, insecure=True)
    )
    services.broadcast_poll_time.seconds = 1
    write(directory / "server.services.config", services)


def write(path, message):
    path.write_text(text_format.MessageToString(message), encoding="utf-8")


def call(client, arguments):
    received = queue.Queue()
    grr = connector.InsecureGRPCServiceClient(
        NAME,
        fleetspeak_message_listen_address=arguments.service,
        fleetspeak_server=arguments.admin,
        options={"grpc.so_reuseport": 0},
    )
    grr.Listen(lambda message, context: received.put(message))
    calls = grr.outgoing

    admin = admin_pb2_grpc.AdminStub(grpc.insecure_channel(arguments.admin))
    admin.KeepAlive(common_pb2.EmptyMessage(), timeout=1.0, wait_for_ready=True)

    # Labels of one client, those of the agent.
    clients = calls.ListClients(admin_pb2.ListClientsRequest(client_ids=[client])).clients
    labels = {(label.service_name, label.label) for label in clients[0].labels}
    expect(("client", arguments.label), labels)

    # A message of a flow, and what comes of it.
    message = common_pb2.Message(message_id=os.urandom(32), message_type="GrrMessage")
    message.destination.client_id = client
    message.destination.service_name = NAME
    message.annotations.entries.add(key="flow_id", value="F:1234")
    message.annotations.entries.add(key="request_id", value="7")
    message.data.Pack(wrappers_pb2.StringValue(value="a request"))
    calls.InsertMessage(message)
    answer = received.get(timeout=SECONDS)
    assert answer.source.client_id == client, answer
    assert answer.source.service_name == NAME, answer
    assert answer.data.value == message.data.value, answer
    assert list(answer.validation_info.tags) == [], answer

    # A flow that is cancelled: nothing on the agent takes its messages.
    waiting = common_pb2.Message()
    waiting.CopyFrom(message)
    waiting.message_id = os.urandom(32)
    waiting.destination.service_name = "absent"
    calls.InsertMessage(waiting)
    count = admin_pb2.GetPendingMessageCountRequest(client_ids=[client])
    until(lambda: calls.GetPendingMessageCount(count).count == 1)
    pending = admin_pb2.GetPendingMessagesRequest(client_ids=[client], want_data=True)
    listed = calls.GetPendingMessages(pending).messages
    assert [m.message_id for m in listed] == [waiting.message_id], listed
    assert listed[0].data == waiting.data, listed
    assert listed[0].annotations == waiting.annotations, listed
    calls.DeletePendingMessages(admin_pb2.DeletePendingMessagesRequest(client_ids=[client]))
    assert calls.GetPendingMessageCount(count).count == 0

    # What the agent has used.
    usage = admin_pb2.FetchClientResourceUsageRecordsRequest(client_id=client)
    usage.start_timestamp.FromSeconds(0)
    usage.end_timestamp.FromSeconds(int(time.time()) + 60)
    calls.FetchClientResourceUsageRecords(usage)

    # The agent's service is started anew and works; then the agent ends.
    system(calls, admin, client, "RestartService", system_pb2.RestartServiceRequest(name=NAME))
    message.message_id = os.urandom(32)
    calls.InsertMessage(message)
    assert received.get(timeout=SECONDS).data.value == message.data.value
    system(calls, admin, client, "Die", system_pb2.DieRequest(force=True))


def system(calls, admin, client, kind, data):
    message = common_pb2.Message(message_id=os.urandom(32), message_type=kind)
    message.destination.client_id = client
    message.destination.service_name = "system"
    message.data.Pack(data)
    calls.InsertMessage(message)
    request = admin_pb2.GetMessageStatusRequest(message_id=message.message_id)

    def is_done():
        status = admin.GetMessageStatus(request, timeout=SECONDS)
        return status.result.HasField("processed_time")

    until(is_done)


def expect(wanted, found):
    assert wanted in found, f"{wanted} is not in {found}"


def until(holds):
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)


if __name__ == "__main__":
    main()
