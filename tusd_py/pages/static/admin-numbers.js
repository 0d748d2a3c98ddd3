// The numbers and charts of the administration page.
import { element, formatBytes, text } from './ui.js'

export const STATES = ['active', 'finishing', 'complete', 'terminated', 'expired']
const OWNERS = 10 // in the chart

/** Show the statistics of the API. */
export function showStats({ by_status: byStatus, by_owner: byOwner, rates, free_space: free }) {
  const numbers = [
    ['numberActive', String(byStatus.active.count)],
    ['numberComplete', String(byStatus.complete.count)],
    ['numberStored', formatBytes(Object.values(byStatus).reduce((sum, share) => sum + share.bytes, 0))],
    ['numberRate', text('speed', { rate: formatBytes(rates.received) })],
    ['numberFree', free === null ? text('unknown') : formatBytes(free)],
  ]
  const items = numbers.map(([key, value]) => {
    const item = document.createElement('li')
    const number = document.createElement('strong')
    const label = document.createElement('span')
    number.textContent = value
    label.textContent = text(key)
    item.append(number, label)
    return item
  })
  element('numbers').replaceChildren(...items)
  const shown = STATES.filter((state) => byStatus[state]?.count > 0)
  showChart('by-status', shown.map((state) => [text(`state_${state}`), byStatus[state]]))
  showChart('by-owner', byOwner.slice(0, OWNERS).map(({ owner, ...share }) => [owner ?? text('noOwner'), share]))
}

function showChart(id, shares) {
  const most = Math.max(1, ...shares.map(([, share]) => share.bytes))
  const items = shares.map(([label, share]) => {
    const item = document.createElement('li')
    const bar = document.createElement('span')
    bar.className = 'bar'
    bar.style.width = `${(100 * share.bytes) / most}%`
    item.append(text('share', { label, count: share.count, size: formatBytes(share.bytes) }), bar)
    return item
  })
  element(id).replaceChildren(...items)
}
