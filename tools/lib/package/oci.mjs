// An OCI image layout of one layer (https://github.com/opencontainers/image-spec/blob/main/image-layout.md).
//
// usage: node oci.mjs LAYER LAYOUT NAME VERSION EPOCH
//
// LAYER is a tar archive; LAYOUT is a folder that is made.

import { createHash } from 'node:crypto';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { gzipSync } from 'node:zlib';

const [layer, layout, name, version, epoch] = process.argv.slice(2);
const created = new Date(Number(epoch) * 1000).toISOString();
const sha256 = (bytes) => createHash('sha256').update(bytes).digest('hex');

mkdirSync(`${layout}/blobs/sha256`, { recursive: true });

// The descriptor of a blob, which is written.
function blob(mediaType, bytes) {
  const digest = sha256(bytes);
  writeFileSync(`${layout}/blobs/sha256/${digest}`, bytes);
  return { mediaType, digest: `sha256:${digest}`, size: bytes.length };
}

const json = (value) => Buffer.from(JSON.stringify(value));

const tar = readFileSync(layer);
const annotations = {
  'org.opencontainers.image.created': created,
  'org.opencontainers.image.licenses': 'MIT',
  'org.opencontainers.image.title': name,
  'org.opencontainers.image.version': version,
};
const config = blob('application/vnd.oci.image.config.v1+json', json({
  created,
  architecture: { x64: 'amd64' }[process.arch] ?? process.arch,
  os: 'linux',
  config: {
    Env: ['PATH=/usr/local/bin:/usr/bin', 'SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt'],
    Entrypoint: ['/usr/bin/node'],
    WorkingDir: '/home/node',
    Labels: annotations,
  },
  rootfs: { type: 'layers', diff_ids: [`sha256:${sha256(tar)}`] },
  history: [{ created, created_by: 'tools/package oci' }],
}));
const manifest = blob('application/vnd.oci.image.manifest.v1+json', json({
  schemaVersion: 2,
  mediaType: 'application/vnd.oci.image.manifest.v1+json',
  config,
  layers: [blob('application/vnd.oci.image.layer.v1.tar+gzip', gzipSync(tar))],
  annotations,
}));
// A tag may have no plus sign.
const tag = version.replaceAll('+', '-');
writeFileSync(`${layout}/index.json`, json({
  schemaVersion: 2,
  mediaType: 'application/vnd.oci.image.index.v1+json',
  manifests: [{
    ...manifest,
    annotations: { 'org.opencontainers.image.ref.name': tag, 'io.containerd.image.name': `docker.io/library/${name}:${tag}` },
  }],
}));
writeFileSync(`${layout}/oci-layout`, json({ imageLayoutVersion: '1.0.0' }));
