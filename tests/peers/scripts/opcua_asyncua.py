"""An OPC UA server of asyncua, as a bottling line that tests can follow.

usage: opcua_asyncua.py PORT DIRECTORY [OPTION...]
  swap     registers the namespaces in the other order, as a server may after a restart

Counter rises by one with each tick, so that a gap or a double shows. The certificate is written to
DIRECTORY/certificate.der, the address of the type of its events to DIRECTORY/event-type. SIGUSR2 ends all sessions and
leaves their subscriptions. Twice a second it prints how many sessions and subscriptions it has.
"""

import asyncio
import datetime
import logging
import signal
import sys
from pathlib import Path

from asyncua import Server, ua, uamethod
from asyncua.common.structures104 import new_enum, new_struct, new_struct_field
from asyncua.crypto.permission_rules import User, UserRole
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

PLANT, OTHER, APPLICATION = "urn:foreshore:peer:plant", "urn:foreshore:peer:other", "urn:foreshore:peer:asyncua"
TICK = 0.05


class Users:
    """The operator has a password, or the server's own certificate; everyone else is anonymous."""

    def __init__(self, directory):
        self.certificate = directory / "certificate.der"

    def get_user(self, _server, username=None, password=None, certificate=None):
        if username is None:
            if certificate == self.certificate.read_bytes():
                print("login certificate accepted", flush=True)
            return User(role=UserRole.User)
        good = (username, password) == ("operator", "bottles")
        print("login", username, "accepted" if good else "refused", flush=True)
        return User(role=UserRole.Admin) if good else None


def certificates(directory):
    """A key, its certificate by an authority of its own, and that authority's."""
    now = datetime.datetime.now(datetime.timezone.utc)

    def build(name, issuer, key, signer, extensions):
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(issuer).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(30))
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.DER)

    authority_key, key = (rsa.generate_private_key(65537, 2048) for _ in range(2))
    authority_name, name = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, n)]) for n in ("authority", "asyncua"))
    authority = build(authority_name, authority_name, authority_key, authority_key, [(x509.BasicConstraints(True, None), True)])
    usage = x509.KeyUsage(True, True, True, True, False, False, False, False, False)
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(APPLICATION), x509.DNSName("localhost")])
    extended = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    leaf = build(name, authority_name, key, authority_key, [(usage, True), (names, False), (extended, False)])
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for file, content in [("certificate.der", leaf), ("authority.der", authority), ("key.pem", secret)]:
        (directory / file).write_bytes(content)


async def structures(server, index):
    point, _ = await new_struct(server, index, "Point", [
        new_struct_field("X", ua.VariantType.Double), new_struct_field("Y", ua.VariantType.Double)])
    mode = await new_enum(server, index, "Mode", ["Idle", "Running", "Fault"])
    status, _ = await new_struct(server, index, "Status", [
        new_struct_field("Position", point), new_struct_field("Path", point, array=True),
        new_struct_field("Counts", ua.VariantType.Int32, array=True), new_struct_field("Mode", mode),
        new_struct_field("Note", ua.VariantType.String, optional=True)])
    await server.load_data_type_definitions()
    return point, mode, status


@uamethod
def add(_parent, a, b):
    return a + b


@uamethod
def fail(_parent):
    return ua.StatusCode(ua.StatusCodes.BadOutOfRange)


async def line(server, index, directory):
    """The address space; returns what changes."""
    point, mode, status = await structures(server, index)
    at = lambda name: ua.NodeId(f"Line.{name}", index)
    objects = await server.nodes.objects.add_object(ua.NodeId("Line", index), f"{index}:Line")
    variable = lambda name, value, kind, **more: objects.add_variable(at(name), f"{index}:{name}", value, kind, **more)
    counter = await variable("Counter", 0, ua.VariantType.UInt32)
    level = await variable("Level", 0.0, ua.VariantType.Double)
    path = [ua.Point(X=1.0, Y=2.0), ua.Point(X=3.0, Y=4.0)]
    value = ua.Status(Position=path[0], Path=path, Counts=[1, 2, 3], Mode=ua.Mode.Running)
    await variable("Status", value, ua.VariantType.ExtensionObject, datatype=status.nodeid)
    await variable("Path", path, ua.VariantType.ExtensionObject, datatype=point.nodeid)
    await variable("Mode", 1, ua.VariantType.Int32, datatype=mode.nodeid)
    await (await variable("Setpoint", 20.0, ua.VariantType.Double)).set_writable()
    await (await variable("Recipe", [1, 2, 3], ua.VariantType.Int32)).set_writable()
    stamped = await variable("Stamped", 7, ua.VariantType.UInt32)
    past = datetime.datetime(2020, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.timezone.utc)
    await stamped.write_value(ua.DataValue(ua.Variant(7, ua.VariantType.UInt32), SourceTimestamp=past))
    await variable("Moment", past, ua.VariantType.DateTime)
    argument = lambda name: ua.Argument(Name=name, DataType=ua.NodeId(ua.ObjectIds.Int32), ValueRank=-1)
    await objects.add_method(at("Add"), f"{index}:Add", add, [argument("a"), argument("b")], [argument("sum")])
    await objects.add_method(at("Fail"), f"{index}:Fail", fail, [], [])
    event = await server.create_custom_event_type(index, "CycleEvent", properties=[("Cycle", ua.VariantType.UInt32)])
    generator = await server.get_event_generator(event, objects)
    (directory / "event-type").write_text(f"nsu={PLANT};i={event.nodeid.Identifier}")
    return counter, level, generator


async def tick(counter, level, generator):
    count = 0
    while True:
        await asyncio.sleep(TICK)
        count += 1
        await counter.write_value(ua.DataValue(ua.Variant(count, ua.VariantType.UInt32)))
        await level.write_value(count * 0.25 + count // 8 * 10)
        if count % 10 == 0:
            generator.event.Cycle = count // 10
            generator.event.Severity = 400 if count % 20 == 0 else 100
            await generator.trigger(message=f"cycle {count // 10}")


async def tell(server):
    while True:
        sessions, service = server.iserver._external_sessions, server.iserver.subscription_service
        print(f"sessions={len(sessions)} subscriptions={len(service.subscriptions)}", flush=True)
        await asyncio.sleep(0.5)


async def main():
    logging.basicConfig(level=logging.WARNING)
    port, directory, options = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    if not (directory / "certificate.der").exists():
        certificates(directory)
    server = Server(user_manager=Users(directory))
    await server.init()
    server.set_endpoint(f"opc.tcp://127.0.0.1:{port}/")
    await server.set_application_uri(APPLICATION)
    server.set_security_policy([
        ua.SecurityPolicyType.NoSecurity,
        ua.SecurityPolicyType.Basic256Sha256_Sign,
        ua.SecurityPolicyType.Basic256Sha256_SignAndEncrypt,
    ])
    await server.load_certificate(str(directory / "certificate.der"))
    await server.load_private_key(str(directory / "key.pem"))
    names = [OTHER, PLANT]
    for name in names[::-1] if "swap" in options else names:
        await server.register_namespace(name)
    index = await server.get_namespace_index(PLANT)
    changing = await line(server, index, directory)

    def end_sessions():
        for session in list(server.iserver._external_sessions.values()):
            asyncio.ensure_future(session.close_session(False))

    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, end_sessions)
    async with server:
        print("ready", flush=True)
        await asyncio.gather(tick(*changing), tell(server))


asyncio.run(main())
