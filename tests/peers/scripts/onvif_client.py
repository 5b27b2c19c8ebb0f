"""Judges a camera with onvif-zeep-async, and each of its answers by ONVIF's own schemas, which that package carries.

The package itself forgives much; here every answer has to be valid to the letter. What was found is printed as one line of
JSON after `judged`, in which `invalid` lists what the schemas say against answers.
"""

import argparse
import asyncio
import datetime
import json
import pathlib

import onvif.client
from lxml import etree
from onvif import ONVIFCamera
from onvif.exceptions import ONVIFAuthError
from zeep.exceptions import Fault

XS = "{http://www.w3.org/2001/XMLSchema}schema"
SOAP = "{http://www.w3.org/2003/05/soap-envelope}"
WSDL = pathlib.Path(onvif.client.__file__).parent / "wsdl"
NOTIFICATION = "http://docs.oasis-open.org/wsn/b-2"

options = argparse.ArgumentParser()
options.add_argument("--port", type=int, required=True)
options.add_argument("--user", default="admin")
options.add_argument("--password", default="secret")
options.add_argument("--adjust-time", action="store_true")
options.add_argument("--only", choices=["login", "all"], default="all")
options = options.parse_args()
print("starting", flush=True)


def schemas():
    """A schema for each namespace of answers."""
    found = {}
    for name in ("devicemgmt", "media", "ptz", "events"):
        path = WSDL / f"{name}.wsdl"
        for schema in etree.parse(path).iter(XS):
            alone = etree.fromstring(etree.tostring(schema), base_url=str(path))
            found[schema.get("targetNamespace")] = etree.XMLSchema(alone.getroottree())
    found[NOTIFICATION] = found["http://www.onvif.org/ver10/events/wsdl"]
    return found


SCHEMAS = schemas()
answers, faults, invalid = 0, 0, []
original_post = onvif.client.AIOHTTPTransport._post_internal


async def judging_post(transport, address, message, headers):
    global answers, faults
    response, text = await original_post(transport, address, message, headers)
    envelope = etree.fromstring(text)
    assert envelope.tag == f"{SOAP}Envelope", envelope.tag
    content = envelope.find(f"{SOAP}Body")[0]
    if content.tag == f"{SOAP}Fault":
        faults += 1
        assert content.findtext(f"{SOAP}Code/{SOAP}Value").startswith("s:"), text
        assert content.findtext(f"{SOAP}Reason/{SOAP}Text"), text
    else:
        answers += 1
        # Alone, with the declarations that it inherits.
        alone = etree.fromstring(etree.tostring(content))
        schema = SCHEMAS[etree.QName(alone).namespace]
        if not schema.validate(alone):
            invalid.extend(f"{error.path}: {error.message}" for error in schema.error_log)
    return response, text


onvif.client.AIOHTTPTransport._post_internal = judging_post


async def refused(call):
    """The subcodes of the fault that a call must give."""
    try:
        await call
    except Fault as fault:
        return subcodes(fault)
    raise AssertionError("the camera accepted what it must refuse")


def subcodes(fault):
    return [code.localname for code in fault.subcodes]


async def pictures(camera):
    media = await camera.create_media_service()
    profiles = await media.GetProfiles()
    token = profiles[0].token
    await media.GetProfile({"ProfileToken": token})
    await media.GetVideoSources()
    await media.GetServiceCapabilities()
    picture = await camera.get_snapshot(token)
    return {
        "profile": token,
        "encoding": profiles[0].VideoEncoderConfiguration.Encoding,
        "picture": picture[:2].hex(),
        "unknown profile": await refused(media.GetSnapshotUri({"ProfileToken": "no"})),
        "unknown operation": await refused(media.GetAudioSources()),
    }


async def movements(camera, profile):
    ptz = await camera.create_ptz_service()

    async def position():
        at = (await ptz.GetStatus({"ProfileToken": profile})).Position
        return [round(value, 2) for value in (at.PanTilt.x, at.PanTilt.y, at.Zoom.x)]

    def to(name, pan, tilt, zoom):
        return {"ProfileToken": profile, name: {"PanTilt": {"x": pan, "y": tilt}, "Zoom": {"x": zoom}}}

    nodes = await ptz.GetNodes()
    await ptz.GetNode({"NodeToken": nodes[0].token})
    configurations = await ptz.GetConfigurations()
    await ptz.GetConfigurationOptions({"ConfigurationToken": configurations[0].token})
    await ptz.GetServiceCapabilities()
    await ptz.AbsoluteMove(to("Position", 0.5, -0.5, 0.25))
    absolute = await position()
    await ptz.RelativeMove(to("Translation", -0.25, 0.25, 0.25))
    relative = await position()
    preset = await ptz.SetPreset({"ProfileToken": profile, "PresetName": "gate & <door>"})
    await ptz.GotoHomePosition({"ProfileToken": profile})
    home = await position()
    await ptz.GotoPreset({"ProfileToken": profile, "PresetToken": preset})
    again = await position()
    names = {known.token: known.Name for known in await ptz.GetPresets({"ProfileToken": profile})}
    await ptz.RemovePreset({"ProfileToken": profile, "PresetToken": preset})
    # The timeout is far; the stop comes before it.
    move = to("Velocity", -0.2, 0.0, 0.0) | {"Timeout": datetime.timedelta(seconds=60)}
    await ptz.ContinuousMove(move)
    moving = (await ptz.GetStatus({"ProfileToken": profile})).MoveStatus.PanTilt
    await ptz.Stop({"ProfileToken": profile, "PanTilt": True, "Zoom": True})
    stopped = [await position(), (await ptz.GetStatus({"ProfileToken": profile})).MoveStatus.PanTilt]
    await asyncio.sleep(0.5)
    # Without a stop: the timeout ends it.
    still = await position()
    await ptz.ContinuousMove(to("Velocity", 0.2, 0.0, 0.0) | {"Timeout": datetime.timedelta(seconds=0.5)})
    while (await ptz.GetStatus({"ProfileToken": profile})).MoveStatus.PanTilt != "IDLE":
        await asyncio.sleep(0.1)
    timed_out = await position()
    await asyncio.sleep(0.3)
    return {
        "absolute": absolute,
        "relative": relative,
        "home": home,
        "preset": again,
        "preset name": names[preset],
        "moving": moving,
        "stopped": stopped[0] == still and stopped[1] == "IDLE",
        "timed out": timed_out == await position() and still[0] < timed_out[0] < 1.0,
        "unknown preset": await refused(ptz.GotoPreset({"ProfileToken": profile, "PresetToken": "no"})),
    }


async def events(camera):
    service = await camera.create_events_service()
    properties = await service.GetEventProperties()
    topics = properties.TopicSet._value_1
    await service.GetServiceCapabilities()
    lost = asyncio.Event()
    manager = await camera.create_pullpoint_manager(datetime.timedelta(seconds=60), lost.set)
    # The same calls as Home Assistant's.
    pull = {"Timeout": datetime.timedelta(seconds=5), "MessageLimit": 10}

    async def state():
        while True:
            answer = await manager.get_service().PullMessages(pull)
            for message in answer.NotificationMessage:
                inner = message.Message._value_1
                return {
                    "topic": message.Topic._value_1.strip(),
                    "operation": inner.PropertyOperation,
                    "state": inner.Data.SimpleItem[0].Value,
                }

    first = await state()
    # The camera moves something twice a second.
    seen = [await state() for _ in range(2)]
    await manager.set_synchronization_point()
    subscription = manager._subscription
    renewed = await subscription.Renew(camera.get_next_termination_time(datetime.timedelta(seconds=120)))
    lifetime = renewed.TerminationTime - renewed.CurrentTime
    await manager.shutdown()
    return {
        "topics": [etree.QName(topic).localname for topic in topics],
        "first": first["operation"],
        "topic": first["topic"],
        "changed": [change["operation"] for change in seen],
        "lifetime": round(lifetime.total_seconds()),
        "after the end": await refused(manager.get_service().PullMessages(pull)),
        "lost": lost.is_set(),
    }


async def login(camera):
    """What a camera answers to whom it does not know."""
    found = {}
    device = await camera.create_devicemgmt_service()
    try:
        await device.GetDeviceInformation()
        found["services"] = "ok"
    except Fault as fault:
        found["services"] = subcodes(fault)
    # The picture itself is asked for, whether the services told its address or not.
    camera._snapshot_uris["profile_1"] = f"http://127.0.0.1:{options.port}/snapshot.jpg"
    try:
        found["picture"] = (await camera.get_snapshot("profile_1") or b"")[:2].hex()
    except ONVIFAuthError:
        found["picture"] = "refused"
    return found


async def main():
    global answers, faults
    camera = ONVIFCamera("127.0.0.1", options.port, options.user, options.password, adjust_time=options.adjust_time)
    await camera.update_xaddrs()
    if options.only == "login":
        found = await login(camera)
    else:
        device = await camera.create_devicemgmt_service()
        information = await device.GetDeviceInformation()
        await camera.get_capabilities()
        for operation in ("GetScopes", "GetHostname", "GetNetworkInterfaces", "GetServiceCapabilities", "GetSystemDateAndTime"):
            await getattr(device, operation)()
        await device.GetServices({"IncludeCapability": True})
        found = {"model": information.Model, "services": sorted(camera.xaddrs)}
        found |= await pictures(camera)
        found |= await movements(camera, found["profile"])
        found |= await events(camera)
        found |= {"answers": answers, "faults": faults, "invalid": invalid}
    await camera.close()
    print("judged", json.dumps(found), flush=True)


asyncio.run(main())
