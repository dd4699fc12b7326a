// Files that end too early: browsers draw what is there and leave the rest grey or empty, so this looks first.

/** True if a file of JPEG, PNG or WebP is cut off; other formats count as whole. */
export function isCut(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  try {
    if (view.getUint16(0) === 0xffd8) return isCutJpeg(view);
    if (view.getUint32(0) === 0x89504e47) return isCutPng(view);
    if (view.getUint32(0) === 0x52494646 && view.getUint32(8) === 0x57454250) return view.getUint32(4, true) + 8 > view.byteLength;
    return false;
  } catch (error) {
    if (error instanceof RangeError) return true; // read beyond the end
    throw error;
  }
}

/** Segments have lengths up to the first scan; from there on only the end of the image is FF D9. */
function isCutJpeg(view) {
  let place = 2;
  while (view.getUint8(place + 1) !== 0xda) {
    const marker = view.getUint8(place + 1), isAlone = marker === 0xff || marker === 0x01 || (marker >= 0xd0 && marker <= 0xd8);
    place += marker === 0xff ? 1 : isAlone ? 2 : 2 + view.getUint16(place + 2);
  }
  for (let end = view.byteLength - 2; end > place; end--) if (view.getUint16(end) === 0xffd9) return false;
  return true;
}

/** Chunks have lengths, and the last one is IEND. */
function isCutPng(view) {
  let place = 8;
  while (view.getUint32(place + 4) !== 0x49454e44) place += 12 + view.getUint32(place);
  return false;
}
