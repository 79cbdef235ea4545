/** The files of a bundle's zip, as slices of it: they are stored, so nothing is unpacked or copied. */

const END = 0x06054b50;
const ENTRY = 0x02014b50;
const END_BYTES = 22;
const ENTRY_BYTES = 46;
const LOCAL_BYTES = 30;

export async function zipFiles(zip: Blob): Promise<Map<string, Blob>> {
  const end = await view(zip, zip.size - END_BYTES, END_BYTES);
  if (end.byteLength < END_BYTES || end.getUint32(0, true) !== END) throw new Error("this is no zip of a bundle, or it is cut off");
  const entries = await view(zip, end.getUint32(16, true), end.getUint32(12, true));
  const files = new Map<string, Blob>();
  let place = 0;
  for (let left = end.getUint16(10, true); left > 0; left--) {
    if (place + ENTRY_BYTES > entries.byteLength || entries.getUint32(place, true) !== ENTRY) throw new Error("its list of files is damaged");
    const nameBytes = entries.getUint16(place + 28, true);
    const name = new TextDecoder().decode(new Uint8Array(entries.buffer, place + ENTRY_BYTES, nameBytes));
    if (entries.getUint16(place + 10, true) !== 0) throw new Error(`${name} in it is compressed; \`adadim bundle\` stores files as they are`);
    const start = entries.getUint32(place + 42, true);
    const local = await view(zip, start, LOCAL_BYTES);
    const data = start + LOCAL_BYTES + local.getUint16(26, true) + local.getUint16(28, true);
    files.set(name, zip.slice(data, data + entries.getUint32(place + 20, true)));
    place += ENTRY_BYTES + nameBytes + entries.getUint16(place + 30, true) + entries.getUint16(place + 32, true);
  }
  return files;
}

async function view(zip: Blob, start: number, bytes: number): Promise<DataView<ArrayBuffer>> {
  return new DataView(await zip.slice(Math.max(0, start), Math.max(0, start) + bytes).arrayBuffer());
}
