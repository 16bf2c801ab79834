'use strict';

// What HTTP is used for: scanners that look for weaknesses, h2load with nghttpd behind ALPN, and curl with many files
// at a time. All of these have many connections, for which there are no FIFOs here, and would have no TLS of their own
// at the near end of a tunnel. What OpenJDK is not asked to do, and why, is in jdk.js.

const assert = require('assert');
const fs = require('fs');
const http = require('http');
const https = require('https');
const { randomBytes } = require('crypto');

const { kRepo, start } = require('../tun/net');
const { freePort, listen, moves, through } = require('./paths');
const { Program } = require('./streams');

const kFiles = 200;

function answer(request, response) {
  const file = `files/${Number(request.url.slice(1))}`;
  response.writeHead(200, { Connection: 'close' }).end(fs.existsSync(file) ? fs.readFileSync(file) : '');
}

const servers = {
  terminator: async () => `tcp:${await listen(http.createServer(answer))}`,
  TLS: async () => {
    const [key, cert] = ['localhost.key', 'localhost.pem'].map((file) => fs.readFileSync(file));
    return `tls:${await listen(https.createServer({ key, cert }, answer))}`;
  },
};

async function output(...command) {
  const program = new Program(command);
  program.stdin.end();
  const status = await program.exited;
  assert(status === 0 || command.includes('testssl'), `${program.name}: ${status} ${program}`);
  return `${program.stdout}`;
}

// --- Scanners -------------------------------------------------------------------------------------------------------

const scanners = {
  async 'sslscan'(port) {
    const text = await output('sslscan', '--no-colour', `localhost:${port}`);
    return text.replaceAll(`${port}`, 'PORT').split('\n');
  },
  // Its exit status is what it has found. Without these options it takes 160 seconds for one server, and all tests of
  // this folder together are to take less than 240: what is left out tries each cipher by itself, and looks at HTTP.
  async 'testssl.sh'(port) {
    const file = `testssl-${port}.json`;
    // Otherwise a machine that is busy makes it forget that this is HTTP, and takes too long to answer a request.
    await output('env', 'HEADER_MAXSLEEP=60', 'testssl', '--quiet', '--color', '0', '--warnings', 'batch', '--nodns',
                 'none', '--assume-http', '--jsonfile', file, '--protocols', '--server-preference',
                 '--vulnerable', `localhost:${port}`);
    return JSON.parse(fs.readFileSync(file, 'utf8'))
      .filter(({ id }) => id !== 'scanTime')
      .map(({ id, severity, finding }) => `${id}: ${severity} ${finding}`);
  },
};

const found = { 'sslscan': /^TLSv1\.3 +enabled/, 'testssl.sh': /^TLS1_3: OK offered/ };

// --- h2load ---------------------------------------------------------------------------------------------------------

async function nghttpd(...args) {
  const port = freePort();
  const program = new Program(['nghttpd', '-d', 'files', `${port}`, ...args]);
  await program.listening(port);
  return port;
}

const h2Servers = {
  terminator: async () => `tcp:${await nghttpd('--no-tls')}`,
  TLS: async () => `tls:${await nghttpd('localhost.key', 'localhost.pem')}`,
};

// 40 at a time on each of 10 connections.
async function h2load(port) {
  const text = await output('h2load', '-n', '4000', '-c', '10', '-m', '40', '-T', '50', `https://localhost:${port}/100`);
  const { size } = fs.statSync('files/100');
  assert.match(text, /^Application protocol: h2$/m);
  assert.match(text, /^requests: 4000 total, 4000 started, 4000 done, 4000 succeeded, 0 failed, 0 errored, 0 timeout$/m);
  assert.match(text, /^status codes: 4000 2xx, 0 3xx, 0 4xx, 0 5xx$/m);
  assert.match(text, new RegExp(`\\(${4000 * size}\\) data$`, 'm'));
}

// --- curl -----------------------------------------------------------------------------------------------------------

async function curl(name, url, ...args) {
  fs.mkdirSync(name);
  const list = Array.from({ length: kFiles }, (_, i) => `url = "${url}/${i}"\noutput = "${name}/${i}"\n`);
  fs.writeFileSync(`${name}.list`, list.join(''));
  await output('curl', '-sS', '--fail', '--http1.1', '--parallel', '--parallel-immediate', '--parallel-max', `${kFiles}`,
               '--cacert', 'ca.pem', '--config', `${name}.list`, ...args);
  for (let i = 0; i < kFiles; i++)
    assert(fs.readFileSync(`${name}/${i}`).equals(fs.readFileSync(`files/${i}`)), `file ${i}`);
}

// One of tools/examples, up; the port.
async function example(name, ...args) {
  const command = [process.execPath, '--disable-warning=ExperimentalWarning', `${kRepo}/tools/examples/${name}.js`,
                   '--port', '0', ...args];
  const { 1: port } = await start('a', command).next(/^listening on .*:(\d+)$/);
  return port;
}

function makeFiles() {
  fs.mkdirSync('files', { recursive: true });
  for (let i = 0; i < kFiles; i++)
    fs.writeFileSync(`files/${i}`, randomBytes(i * 317));
}

const setUp = { curl: makeFiles, nghttp2: makeFiles };

function add(test) {
  for (const [name, kind] of [['sslscan', 'terminator'], ['sslscan', 'TLS'], ['testssl.sh', 'terminator']]) {
    const scan = scanners[name];
    test(`${name}, ${kind}`, name, async () => {
      const to = await servers[kind]();
      const scans = moves.map(async (move) => scan((await through(move, 'tls', to)).port));
      const [splice, pipeline] = await Promise.all(scans);
      assert(pipeline.some((line) => found[name].test(line)), pipeline.join('\n'));
      assert.deepStrictEqual(splice, pipeline);
    });
  }
  for (const [kind, serve] of Object.entries(h2Servers)) {
    test(`h2load and nghttpd, ${kind}`, 'nghttp2', async () => {
      const to = await serve();
      await Promise.all(moves.map(async (move) => {
        await h2load((await through(move, 'tls', to, { ALPNProtocols: ['h2'] })).port);
      }));
    });
  }
  for (const [kind, serve] of Object.entries(servers)) {
    test(`curl, ${kFiles} files at a time, ${kind}`, 'curl', async () => {
      const to = await serve();
      await Promise.all(moves.map(async (move) => {
        await curl(`${kind}-${move}`, `https://localhost:${(await through(move, 'tls', to)).port}`);
      }));
    });
  }
  test(`curl, ${kFiles} files at a time, through sni-proxy.js`, 'curl', async () => {
    const to = (await servers.TLS()).replace('tls:', 'localhost=localhost:');
    await curl('sni-proxy', `https://localhost:${await example('sni-proxy', '--ca', 'ca.pem', to)}`);
  });
  test(`curl, ${kFiles} files at a time, through https-proxy.js`, 'curl', async () => {
    const { 1: port } = (await servers.TLS()).split(':');
    const proxy = await example('https-proxy', '--key', 'localhost.key', '--cert', 'localhost.pem', '--allow', port);
    await curl('https-proxy', `https://localhost:${port}`, '--proxy', `https://localhost:${proxy}`,
               '--proxy-cacert', 'ca.pem');
  });
}

module.exports = { add, setUp };
