// What the panel does on the page itself, without asking the kernel: it copies an address that is clicked, and keeps
// the focus where it was, and unfolded what was unfolded, when a refresh replaces it. Runs as an event handler inside the panel, each time that
// the panel is put on the page.

const panel = this.closest('.cdm-panel');
if (panel && !panel.cdmReady) {
  panel.cdmReady = true;

  // One listener on the panel for all addresses: what it copies it reads from the page, so that no foreign text becomes
  // a script. Without a clipboard (a page that did not come over TLS) the older command copies the selection.
  const say = words => {
    const toast = panel.querySelector('.cdm-toast');
    toast.textContent = words;
    clearTimeout(toast.cdmTimer);
    toast.cdmTimer = setTimeout(() => toast.textContent = '', 2000);
  };
  const copied = text => say('Copied ' + text);
  const copy = address => {
    const text = address.textContent;
    const byCommand = () => document.execCommand('copy') && copied(text);
    getSelection().selectAllChildren(address);
    navigator.clipboard ? navigator.clipboard.writeText(text).then(() => copied(text), byCommand) : byCommand();
  };
  panel.addEventListener('click', event => {
    const address = event.target.closest('.cdm-copy');
    address && copy(address);
    // The kernel hears of it when the cell is done; who pressed is answered here, and now.
    const button = event.target.closest('button');
    button && panel.querySelector('.cdm-waits') && say('Pressed: it acts when the cell is done');
  });

  // One listener for all panels, on the window: JupyterLab's shortcuts listen on the document, and Enter and letters
  // mean something else to them. With Ctrl (or Cmd, or Alt) they are meant: the notebook is saved from here, too.
  window.cdmKeys || (window.cdmKeys = window.addEventListener('keydown', event => {
    const ours = event.target.closest && event.target.closest('.cdm-panel .widget-html-content');
    if (!ours || event.ctrlKey || event.metaKey || event.altKey) return;
    event.stopPropagation();
    const address = event.target.closest('.cdm-copy');
    if (address && (event.key === 'Enter' || event.key === ' ')) {
      event.preventDefault();
      address.click();
    }
  }, true) || true);

  // A browser takes the focus from an element that goes. The observer runs before the next key can be pressed. What
  // loses the focus and is still on the page lost it to somebody.
  const unfolded = new Set();
  panel.addEventListener('toggle', event => {
    const {open, dataset} = event.target;
    open ? unfolded.add(dataset.session) : unfolded.delete(dataset.session);
  }, true);
  const words = element => element.getAttribute('aria-label') || element.textContent;
  let focused = null;
  panel.addEventListener('focusin', event => {
    focused = event.target.closest('.widget-html-content') && event.target;
  });
  panel.addEventListener('focusout', event => setTimeout(() => {
    const left = event.target.isConnected && document.activeElement !== event.target;
    if (left && focused === event.target) focused = null;
  }));
  new MutationObserver(() => {
    for (const fold of panel.querySelectorAll('details')) fold.open ||= unfolded.has(fold.dataset.session);
    if (!focused || focused.isConnected) return;
    const candidates = [...panel.querySelectorAll('.widget-html-content :is(a, summary, [tabindex])')];
    const same = candidates.find(candidate => words(candidate) === words(focused));
    focused = null;
    same && same.focus({preventScroll: true});
  }).observe(panel, {childList: true, subtree: true});
}
