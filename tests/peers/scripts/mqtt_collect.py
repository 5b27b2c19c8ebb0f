"""Collects messages with paho-mqtt at QoS 1, in a session that outlives its connections, whatever the broker does.

Usage: mqtt_collect.py PORT NAME TOPIC

Lines: "collecting" once subscribed first, then for each message "message TOPIC PAYLOAD", the payload as far as its first
comma.
"""

import sys
import time

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

port, name, topic = sys.argv[1:]
known = False


def say(*words):
    print(*words, flush=True)


def on_connect(client, data, flags, reason, properties):
    # A session that was kept has its subscription.
    if not reason.is_failure and not flags.session_present:
        if known:
            say("session lost")
        client.subscribe(topic, qos=1)


def on_subscribe(*_):
    global known
    if not known:
        known = True
        say("collecting")


def on_message(client, data, message):
    say("message", message.topic, message.payload.decode().split(",")[0])


properties = Properties(PacketTypes.CONNECT)
properties.SessionExpiryInterval = 3600
client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=name, protocol=mqtt.MQTTv5)
client.on_connect = on_connect
client.on_subscribe = on_subscribe
client.on_message = on_message
while True:
    try:
        client.connect("127.0.0.1", port=int(port), clean_start=False, properties=properties)
        while client.loop(timeout=0.1) == mqtt.MQTT_ERR_SUCCESS:
            pass
    except OSError:
        # Nobody listens at the moment.
        pass
    time.sleep(0.2)
