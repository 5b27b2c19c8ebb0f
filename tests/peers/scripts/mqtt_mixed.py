"""Loads a broker with everything that has to survive its sudden death, with paho-mqtt, and says what became of it.

Usage: mqtt_mixed.py PORT

Publishers: one of QoS 1, one of QoS 2, one of retained messages. Receivers, all with sessions that outlive their
connections: one that stays, one that comes and goes, and two members of a shared subscription, one of whom comes and goes.
Whenever a connection breaks, the client connects again, and goes on where it was as MQTT has it.

Prints "loading" once all receivers have subscribed, and "acknowledged n refused n" each second. On SIGTERM the publishers
wait for what is on the way, the receivers for what was acknowledged; the last line is a JSON object of what is wrong:

missing   numbers that a receiver never got, though they were acknowledged
twice     numbers of QoS 2 that a receiver, or the group, got more than once
stale     retained topics whose last acknowledged value is not what a new subscriber gets
sessions  clients whose session was gone when they came back
"""

import collections
import json
import random
import signal
import sys
import threading
import time

import paho.mqtt.client as mqtt
from paho.mqtt.enums import MessageState
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

# Publishes on the way at a time, of each publisher.
WINDOW = 50
# How long the end may take; only a broker that lost something takes so long.
PATIENCE = 180
RETAINED_TOPICS = 20

port = int(sys.argv[1])
stopping = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stopping.set())


def say(*words):
    print(*words, flush=True)


class Client:
    """A client that connects again whenever its connection breaks."""

    def __init__(self, name):
        self.name = name
        self.connected = threading.Event()
        self.wanted = True
        self.known = False
        self.lost_session = False
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=name, protocol=mqtt.MQTTv5)
        self.client.max_inflight_messages_set(WINDOW)
        self.client.on_connect = self.on_connect
        self.client.on_disconnect = lambda *_: self.connected.clear()

    def start(self):
        """Connects; everything that hears of it is there by now."""
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = 3600
        while True:
            if self.wanted:
                self.remember_releases()
                try:
                    self.client.connect("127.0.0.1", port, keepalive=60, clean_start=False, properties=properties)
                    while self.client.loop(timeout=0.01) == mqtt.MQTT_ERR_SUCCESS:
                        if self.connected.is_set():
                            self.work()
                except (OSError, ValueError):
                    # Nobody listens at the moment.
                    pass
                self.connected.clear()
            time.sleep(0.05)

    def remember_releases(self):
        # At the second attempt to connect paho forgets that PUBREC had come, and publishes anew what it has to release.
        for message in self.client._out_messages.values():
            if message.state == MessageState.MQTT_MS_RESEND_PUBREL:
                message.state = MessageState.MQTT_MS_WAIT_FOR_PUBCOMP

    def on_connect(self, client, data, flags, reason, properties):
        if reason.is_failure:
            return
        if self.known and not flags.session_present:
            self.lost_session = True
        self.known = True
        self.ready()
        self.connected.set()

    def ready(self):
        """The client is connected."""

    def work(self):
        """Called all the time while it is."""
        if not self.wanted:
            self.client.disconnect()


class Publisher(Client):
    """Publishes numbers, and knows which were acknowledged."""

    def __init__(self, name, qos, topic, retain=False):
        self.qos, self.topic, self.retain = qos, topic, retain
        self.number = 0
        self.waiting = {}
        self.acknowledged = set()
        self.refused = set()
        super().__init__(name)
        self.client.on_publish = self.on_publish
        self.handle_pubrec = self.client._handle_pubrec
        self.client._handle_pubrec = self.on_pubrec
        self.start()

    def on_pubrec(self):
        # A PUBREC that refuses ends the message; paho takes it for one that does not, and releases what there is not.
        packet = self.client._in_packet["packet"]
        if len(packet) > 2 and packet[2] >= 0x80:
            self.refused.add(self.waiting[int.from_bytes(packet[:2], "big")])
        return self.handle_pubrec()

    def on_publish(self, client, data, mid, reason, properties):
        number = self.waiting.pop(mid)
        # PUBCOMP says "not found" for a release that was sent again, and the message was taken all the same.
        if self.qos == 1 and reason.is_failure:
            self.refused.add(number)
        elif number not in self.refused:
            self.acknowledged.add(number)

    def work(self):
        while not stopping.is_set() and len(self.waiting) < WINDOW:
            info = self.client.publish(self.topic(self.number), str(self.number), self.qos, self.retain)
            self.waiting[info.mid] = self.number
            self.number += 1


class Receiver(Client):
    """Counts what it gets."""

    def __init__(self, name, filters):
        self.filters = filters
        self.subscribed = threading.Event()
        self.got = {"one": collections.Counter(), "two": collections.Counter()}
        super().__init__(name)
        self.client.on_subscribe = lambda *_: self.subscribed.set()
        self.client.on_message = self.on_message
        self.start()

    def ready(self):
        if not self.subscribed.is_set():
            self.client.subscribe([(filter, mqtt.SubscribeOptions(qos=2)) for filter in self.filters])

    def on_message(self, client, data, message):
        self.got[message.topic.split("/")[1]][int(message.payload)] += 1


class Group:
    """What its members got together."""

    def __init__(self, name, members):
        self.name, self.members = name, members

    @property
    def got(self):
        return {kind: sum((member.got[kind] for member in self.members), collections.Counter()) for kind in ("one", "two")}


topics = ["mixed/one/#", "mixed/two/#"]
shared = [f"$share/team/{topic}" for topic in topics]
steady, visitor = Receiver("steady", topics), Receiver("visitor", topics)
members = [Receiver("member-1", shared), Receiver("member-2", shared)]
receivers = [steady, visitor, *members]
for receiver in receivers:
    receiver.subscribed.wait()
publishers = {
    "one": Publisher("publisher-1", 1, lambda n: f"mixed/one/{n % 7}"),
    "two": Publisher("publisher-2", 2, lambda n: f"mixed/two/{n % 7}"),
    "retained": Publisher("publisher-3", 1, lambda n: f"retained/{n % RETAINED_TOPICS}", retain=True),
}
say("loading")

told = change = time.monotonic()
while not stopping.is_set():
    now = time.monotonic()
    if now - told > 1:
        told = now
        acknowledged = sum(len(publisher.acknowledged) for publisher in publishers.values())
        say("acknowledged", acknowledged, "refused", sum(len(publisher.refused) for publisher in publishers.values()))
    if now > change:
        change = now + random.uniform(0.2, 2)
        random.choice([visitor, members[1]]).wanted ^= True
    time.sleep(0.05)

end = time.monotonic() + PATIENCE
for receiver in receivers:
    receiver.wanted = True
while any(publisher.waiting for publisher in publishers.values()) and time.monotonic() < end:
    time.sleep(0.05)


def missing(audience):
    got = audience.got
    return {kind: sorted(publishers[kind].acknowledged - got[kind].keys()) for kind in ("one", "two")}


audiences = [steady, visitor, Group("team", members)]
while any(any(missing(audience).values()) for audience in audiences) and time.monotonic() < end:
    time.sleep(0.2)
# What comes twice comes late.
time.sleep(2)

last = {}
reader = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
reader.on_message = lambda client, data, message: last.__setitem__(message.topic, int(message.payload))
reader.connect("127.0.0.1", port)
reader.subscribe("retained/#", 1)
while len(last) < RETAINED_TOPICS and time.monotonic() < end:
    reader.loop(timeout=0.1)

retained = publishers["retained"]
expected = {retained.topic(n): n for n in sorted(retained.acknowledged)}
doubles = {a.name: sorted(n for n, count in a.got["two"].items() if count > 1) for a in audiences}
say(json.dumps({
    "acknowledged": {kind: len(publisher.acknowledged) for kind, publisher in publishers.items()},
    "unanswered": {kind: len(publisher.waiting) for kind, publisher in publishers.items() if publisher.waiting},
    "missing": {a.name: {k: n[:20] for k, n in missing(a).items() if n} for a in audiences if any(missing(a).values())},
    "twice": {name: numbers[:20] for name, numbers in doubles.items() if numbers},
    "stale": [topic for topic, n in expected.items() if last.get(topic) != n],
    "sessions": [client.name for client in [*receivers, *publishers.values()] if client.lost_session],
}))
