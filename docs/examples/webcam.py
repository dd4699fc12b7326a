"""Segment a webcam or a video file: python webcam.py model.onnx 0 out.avi

The second argument is the number of a camera, or a file that OpenCV reads. Ctrl-C ends it, and keeps what was written.
"""

import sys
from contextlib import suppress

import cv2

import runtime


def main(model: str, source: str, out: str) -> None:
    video = cv2.VideoCapture(int(source) if source.isdigit() else source)
    if not video.isOpened():
        raise SystemExit(f"{source}: is no camera or video that OpenCV opens")
    size = int(video.get(cv2.CAP_PROP_FRAME_WIDTH)), int(video.get(cv2.CAP_PROP_FRAME_HEIGHT))
    writer = cv2.VideoWriter(out, cv2.VideoWriter.fourcc(*"MJPG"), video.get(cv2.CAP_PROP_FPS) or 30, size)
    count = 0
    with runtime.Predictor(model) as predictor, suppress(KeyboardInterrupt):
        while True:
            there, frame = video.read()
            if not there:
                break
            result = predictor.predict(frame, channels="BGR")  # OpenCV's order, which the model cannot see by itself
            writer.write(cv2.cvtColor(result.overlay(), cv2.COLOR_RGB2BGR))  # everything in a result is RGB
            count += 1
            share = result.area() / result.mask.size
            print(f"\rframe {count}: {result.times.total:.0f} ms, {share:.1%} foreground", end="")
    writer.release()
    print(f"\n{count} frames in {out}")


if __name__ == "__main__":
    main(*sys.argv[1:])
