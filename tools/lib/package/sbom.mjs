// The list of what is in the Debian package, in SPDX 2.3.
//
// usage: node sbom.mjs VENDOR NAME VERSION NODE COMMIT EPOCH BUNDLED... < PACKAGES
//
// VENDOR has the crates and their Cargo.lock. NAME and VERSION are the package's, NODE is the version of Debian's source.
// PACKAGES are lines "name version" of Debian's packages: of those that are BUNDLED the source is compiled in, and the
// others are needed at run time.

import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';

const [vendor, name, version, node, commit, epoch, ...bundled] = process.argv.slice(2);
const packagesOfDebian = readFileSync(0, 'utf8').trim().split('\n').map((line) => line.split(' '));
const root = 'SPDXRef-Package';

const idOf = (kind, name) => `SPDXRef-${kind}-${name.replace(/[^A-Za-z0-9.-]/g, '-')}`;

function entry(id, name, version, license, more) {
  return {
    SPDXID: id, name, versionInfo: version, downloadLocation: 'NOASSERTION', filesAnalyzed: false,
    licenseConcluded: 'NOASSERTION', licenseDeclared: license, copyrightText: 'NOASSERTION', ...more,
  };
}

const reference = (locator) => ({
  externalRefs: [{ referenceCategory: 'PACKAGE-MANAGER', referenceType: 'purl', referenceLocator: locator }],
});

// The crates of a Cargo.lock: with their checksums if they come from a registry.
function crates() {
  const lock = readFileSync(`${vendor}/Cargo.lock`, 'utf8');
  return lock.split('\n[[package]]\n').slice(1).map((text) => {
    const value = (key) => new RegExp(`^${key} = "(.*)"$`, 'm').exec(text)?.[1];
    return { name: value('name'), version: value('version'), checksum: value('checksum') };
  });
}

function licenseOf(name) {
  const manifest = readFileSync(`${vendor}/vendor/${name}/Cargo.toml`, 'utf8');
  // Older manifests have a slash where SPDX has OR.
  return /^license = "(.*)"$/m.exec(manifest)[1].replaceAll('/', ' OR ');
}

// What the library is made of; the other crates only help to compile it.
const linked = ['tls-splice', 'libc', 'openssl-sys'];

const packages = [];
const relationships = [];
const relate = (spdxElementId, relationshipType, relatedSpdxElement) =>
  relationships.push({ spdxElementId, relationshipType, relatedSpdxElement });

relate('SPDXRef-DOCUMENT', 'DESCRIBES', root);
packages.push(entry(root, name, version, 'NOASSERTION', {
  supplier: 'Organization: The tls-splice authors', sourceInfo: `commit ${commit}`,
}));
packages.push(entry(idOf('Source', 'nodejs'), 'nodejs', node, 'NOASSERTION',
                    reference(`pkg:deb/debian/nodejs@${encodeURIComponent(node)}?arch=source`)));
relate(root, 'CONTAINS', idOf('Source', 'nodejs'));

for (const { name, version, checksum } of crates()) {
  const id = idOf('Crate', name);
  packages.push(entry(id, name, version, checksum ? licenseOf(name) : 'MIT', checksum ? {
    checksums: [{ algorithm: 'SHA256', checksumValue: checksum }],
    ...reference(`pkg:cargo/${name}@${version}`),
  } : {}));
  if (linked.includes(name))
    relate(root, 'CONTAINS', id);
  else
    relate(id, 'BUILD_DEPENDENCY_OF', root);
}

for (const { 0: name, 1: version } of packagesOfDebian) {
  const id = idOf('Debian', name);
  packages.push(entry(id, name, version, 'NOASSERTION', reference(`pkg:deb/debian/${name}@${encodeURIComponent(version)}`)));
  relate(root, bundled.includes(name) ? 'CONTAINS' : 'DEPENDS_ON', id);
}

const content = JSON.stringify({ packages, relationships });
console.log(JSON.stringify({
  spdxVersion: 'SPDX-2.3', dataLicense: 'CC0-1.0', SPDXID: 'SPDXRef-DOCUMENT', name: `${name}-${version}`,
  documentNamespace: `https://spdx.org/spdxdocs/${name}-${createHash('sha256').update(content).digest('hex')}`,
  creationInfo: {
    created: new Date(epoch * 1000).toISOString().replace(/\.\d+Z$/, 'Z'), creators: ['Tool: tls-splice-tools-package'],
  },
  packages, relationships,
}, null, 1));
