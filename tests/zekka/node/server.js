// The sample application as a Node.js service, of one version: that of package.json.
const fs = require('fs');
const http = require('http');
const path = require('path');
const { version } = require('./package.json');
const greet = require('greeter');

// An experiment's `faults.json` in the installation makes one version unhealthy, from outside of its release.
function isHealthy() {
  const file = path.join(__dirname, '../../faults.json');
  const faults = fs.existsSync(file) ? JSON.parse(fs.readFileSync(file, 'utf8')) : {};
  return !faults[`v${version}`]?.unhealthy;
}

const answers = {
  '/api/health': () => ({ status: isHealthy() ? 'ok' : 'unhealthy', version: `v${version}` }),
  '/api/version': () => ({
    version: `v${version}`,
    greeting: greet(process.env),
    pid: process.pid,
    host: require('os').hostname(),
    directory: __dirname,
  }),
};

const server = http.createServer((request, response) => {
  const answer = answers[request.url]?.() ?? { error: 'no such page' };
  const status = answer.error ? 404 : answer.status === 'unhealthy' ? 503 : 200;
  response.writeHead(status, { 'content-type': 'application/json' });
  response.end(JSON.stringify(answer));
});
server.listen(Number(process.env.PORT), '127.0.0.1', () => console.log(`v${version} listens`));

// Requests under way are answered first. pm2 sends SIGINT, others SIGTERM.
for (const signal of ['SIGINT', 'SIGTERM']) {
  process.on(signal, () => {
    server.close(() => process.exit(0));
    server.closeIdleConnections();
  });
}
