"""ipycam on 127.0.0.1 alone: no WS-Discovery, no video encoders, pictures from memory.

It prints `camera is ready` and then every request with the status of its answer, as in `POST /onvif/ptz_service 401`,
and of each movement to a place what its motors are told, as in `motors to 0.5 -0.25 0.75`.
"""

import argparse

import ipycam.camera as parts
import numpy
from ipycam import CameraConfig, IPCamera


class NoDiscovery:
    def __init__(self, onvif):
        pass

    def start(self):
        pass

    def stop(self):
        pass


class Loopback(parts.ReusableThreadingTCPServer):
    def __init__(self, address, handler):
        super().__init__(("127.0.0.1", address[1]), handler)


class Motors:
    def on_absolute_move(self, pan, tilt, zoom):
        print("motors to", pan, tilt, zoom, flush=True)


def log_request(handler, code="-", size="-"):
    print(handler.command, handler.path, int(code), flush=True)


parts.WSDiscoveryServer = NoDiscovery
parts.ReusableThreadingTCPServer = Loopback
parts.IPCameraHTTPHandler.log_request = log_request
for encoder in ("check_go2rtc_running", "check_rtsp_port_available", "is_native_rtsp_available", "is_webrtc_available"):
    setattr(parts, encoder, lambda *args, **kwargs: False)

options = argparse.ArgumentParser()
options.add_argument("--port", type=int, required=True)
options.add_argument("--user", default="")
options.add_argument("--password", default="")
# What the camera believes of its own address.
options.add_argument("--believed-host", default="127.0.0.1")
options = options.parse_args()

WIDTH, HEIGHT = 320, 180
config = CameraConfig(
    name="Gate & Door <1>",
    model="Gate & Door <1>",
    local_ip=options.believed_host,
    onvif_port=options.port,
    username=options.user,
    password=options.password,
    main_width=WIDTH,
    main_height=HEIGHT,
    main_fps=10,
)
camera = IPCamera(config)
camera.ptz.add_hardware_handler(Motors())
assert camera.start()
print("camera is ready", flush=True)
frame = numpy.zeros((HEIGHT, WIDTH, 3), dtype=numpy.uint8)
frame[:] = numpy.linspace(0, 255, WIDTH, dtype=numpy.uint8)[None, :, None]
while True:
    # Paces itself.
    camera.stream(frame.copy())
