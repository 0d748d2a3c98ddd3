// Copies files of npm packages, unmodified, into tusd_py/pages/vendor: with their licences, compressed copies beside
// them, and a manifest. The tarballs must have the digests of tests/clients/package-lock.json. Run by `make vendor`.
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { brotliCompressSync, constants, gzipSync } from 'node:zlib'

const FILES = {
  uppy: ['dist/uppy.min.js', 'dist/uppy.min.css'],
  'tus-js-client': ['dist/tus.min.js'],
}
const ROOT = join(import.meta.dirname ?? new URL('.', import.meta.url).pathname, '..')
const TARGET = join(ROOT, 'tusd_py/pages/vendor')
const LOCK = JSON.parse(readFileSync(join(ROOT, 'tests/clients/package-lock.json')))

/** The folder of a package, from its tarball, which must be the one in the lock file. */
function unpacked(name, folder) {
  const { version, integrity } = LOCK.packages[`node_modules/${name}`]
  execFileSync('npm', ['pack', `${name}@${version}`, '--silent', '--pack-destination', folder], { stdio: 'ignore' })
  const tarball = join(folder, readdirSync(folder).find((file) => file.endsWith('.tgz')))
  const digest = `sha512-${createHash('sha512').update(readFileSync(tarball)).digest('base64')}`
  if (digest !== integrity) throw new Error(`${name} ${version} is ${digest}, not ${integrity} of the lock file`)
  execFileSync('tar', ['-xzf', tarball, '-C', folder])
  return { version, integrity, path: join(folder, 'package') }
}

function vendor(name) {
  const folder = mkdtempSync(join(tmpdir(), 'vendor-'))
  try {
    const { version, integrity, path } = unpacked(name, folder)
    const copied = {}
    for (const file of FILES[name]) {
      const data = readFileSync(join(path, file))
      const target = join(TARGET, file.split('/').pop())
      writeFileSync(target, data)
      writeFileSync(`${target}.gz`, gzipSync(data, { level: 9 }))
      writeFileSync(`${target}.br`, brotliCompressSync(data, { params: { [constants.BROTLI_PARAM_QUALITY]: 11 } }))
      copied[file.split('/').pop()] = createHash('sha256').update(data).digest('hex')
    }
    writeFileSync(join(TARGET, `${name}.LICENSE`), readFileSync(join(path, 'LICENSE')))
    const { license } = JSON.parse(readFileSync(join(path, 'package.json')))
    return { name, version, license, integrity, files: copied }
  } finally {
    rmSync(folder, { recursive: true })
  }
}

rmSync(TARGET, { recursive: true, force: true })
mkdirSync(TARGET, { recursive: true })
const packages = Object.keys(FILES).map(vendor)
writeFileSync(join(TARGET, 'VENDOR.json'), `${JSON.stringify({ packages }, null, 2)}\n`)
for (const { name, version, files } of packages) console.log(name, version, Object.keys(files).join(' '))
