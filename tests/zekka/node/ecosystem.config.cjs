// What pm2 runs. The variables come from the .env file of the installation, the nearest one above this release.
const fs = require('fs');
const path = require('path');

function readEnv(dir) {
  const file = path.join(dir, '.env');
  if (!fs.existsSync(file)) {
    return path.dirname(dir) === dir ? {} : readEnv(path.dirname(dir));
  }
  const lines = fs.readFileSync(file, 'utf8').split('\n');
  const pairs = lines.filter((line) => line.includes('=') && !line.startsWith('#'));
  return Object.fromEntries(pairs.map((line) => [line.slice(0, line.indexOf('=')), line.slice(line.indexOf('=') + 1)]));
}

module.exports = {
  apps: [{ name: 'zekka-app', script: 'server.js', cwd: __dirname, env: readEnv(__dirname) }],
};
