'use strict';

// usage: test/peers/run [WORD]: the tests with WORD in their name, or all

const fs = require('fs');
const os = require('os');
const path = require('path');
const { randomBytes } = require('crypto');

const { ip, killAll, run } = require('../tun/net');
const { killPrograms } = require('./streams');

// Each adds tests, with the package that they need. `setUp` prepares the use of some packages.
const modules = ['jdk', 'http', 'programs', 'hostile'].map((name) => require(`./${name}`));
const missing = process.env.PEERS_MISSING.split(' ');

const work = fs.mkdtempSync(path.join(os.tmpdir(), 'peers-'));
process.chdir(work);

function certificate(name, ...args) {
  run('a', ['openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-noenc', '-days', '2',
            '-keyout', `${name}.key`, '-out', `${name}.pem`, '-subj', `/CN=${name}`, ...args]);
}

function setUp() {
  ip('a', 'link set lo up');
  fs.writeFileSync('sent', randomBytes(300_001).map((byte) => byte | 0x80));
  fs.writeFileSync('other', randomBytes(200_003).map((byte) => byte | 0x80));
  certificate('ca', '-addext', 'basicConstraints=critical,CA:TRUE', '-addext', 'keyUsage=critical,keyCertSign');
  for (const name of ['localhost', 'a.example']) {
    certificate(name, '-CA', 'ca.pem', '-CAkey', 'ca.key', '-addext', `subjectAltName=DNS:${name}`,
                '-addext', 'basicConstraints=critical,CA:FALSE');
  }
}

const toSetUp = new Map(modules.flatMap(({ setUp }) => Object.entries(setUp)));
const tests = [];
for (const { add } of modules)
  add((name, needs, body) => tests.push({ name, needs, body }));

async function main() {
  setUp();
  const word = process.argv[2] ?? '';
  let passed = 0;
  let failed = 0;
  let skipped = 0;
  for (const { name, needs, body } of tests) {
    if (!name.includes(word))
      continue;
    if (missing.includes(needs)) {
      skipped++;
      console.log(`ok - ${name} # skip there is no ${needs} to be had here`);
      continue;
    }
    const begin = process.hrtime.bigint();
    // Whatever waits for them is told.
    const stop = () => Promise.all([killAll(), killPrograms()]);
    const deadline = setTimeout(stop, 300_000);
    try {
      toSetUp.get(needs)?.();
      toSetUp.delete(needs);
      await body();
      passed++;
      console.log(`ok - ${name} (${Math.round(Number(process.hrtime.bigint() - begin) / 1e6)} ms)`);
    } catch (err) {
      failed++;
      console.log(`not ok - ${name}\n${err.stack.replace(/^/gm, '    ')}`);
    }
    clearTimeout(deadline);
    await stop();
  }
  process.chdir('/');
  fs.rmSync(work, { recursive: true });
  const left = skipped ? `, ${skipped} skipped` : '';
  // All of them are to take less than 4 minutes.
  console.log(`${passed} passed, ${failed} failed${left} in ${Math.round(process.uptime())} s`);
  process.exit(failed === 0 ? 0 : 1);
}
main();
