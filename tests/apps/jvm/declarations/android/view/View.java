package android.view;

public class View {
    public interface OnClickListener {
        void onClick(View view);
    }

    public native boolean isEnabled();

    public void setEnabled(boolean enabled) {}

    public void setOnClickListener(OnClickListener listener) {}
}
